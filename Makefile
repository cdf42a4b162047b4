# make demo: evaluate a tiny model, and a toy before and after the recipes; write two pages into results/demo.  make test: the test-suite.  Both install what they need.
PY ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow recipe-smoke lint types format docs lock clean

install: .venv/.done

.venv/.done: requirements.txt requirements-assets.txt pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore uv
	test -x $(BIN)/python || $(PY) -m uv venv --quiet .venv
	$(PY) -m uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(PY) -m uv pip install --quiet --python $(BIN)/python --no-deps -e .
	$(PY) -m uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --target .test-assets -r requirements-assets.txt
	touch $@

# FigStep's own images where they are there, images of ours in its manner where not.
TYPO := $(if $(wildcard $(VIDEOSAFETY_DATA_DIR)/figstep/question),figstep_tiny,vsb_typo)

TOY := training_recipes/toy_world/checkpoints

demo: install
	rm -rf results/demo
	$(BIN)/videosafety tiny --plain --out results/demo/tiny
	$(BIN)/lmms-eval --model videosafety_r1 --model_args pretrained=results/demo/tiny --tasks vsb,vsb_text,$(TYPO) \
		--batch_size 32 --gen_kwargs max_new_tokens=24 --output_path results/demo/runs --log_samples
	$(BIN)/videosafety report results/demo/runs --html results/demo/report.html
	$(BIN)/lmms-eval --model videosafety_r1 --model_args pretrained=$(TOY)/base --tasks toy_world --batch_size 60 --output_path results/demo/toy/base --log_samples
	$(BIN)/lmms-eval --model videosafety_r1 --model_args pretrained=$(TOY)/r1,trust_remote_code=True --tasks toy_world --batch_size 60 --output_path results/demo/toy/r1 --log_samples
	$(BIN)/videosafety report results/demo/toy --html results/demo/toy_world.html

test: install lint types
	$(BIN)/pytest -n 2 --dist loadscope --durations=10

# Tests of over half a minute each: two processes, Ray, whole chains.
test-slow: install
	$(BIN)/pytest -n 2 --dist loadscope -m slow

# The four stages on a tiny model, each from the last one's folder; then an evaluation. About a minute and a half.
recipe-smoke: install
	rm -rf results/recipe-smoke
	$(BIN)/python -m videosafety.training_recipes.smoke --out results/recipe-smoke

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy sees the folders as the one package that they install as.
types: install
	mkdir -p build/types/videosafety
	ln -sfn $(CURDIR)/cli/*.py $(CURDIR)/lmms_eval_tasks $(CURDIR)/hf_models $(CURDIR)/training_recipes $(CURDIR)/hub_cards $(CURDIR)/dataset_builder build/types/videosafety/
	MYPYPATH=build/types $(BIN)/mypy -p videosafety

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of the benchmarks, from each folder's dataset.yml and README.md.
docs: install
	$(BIN)/python -m videosafety.lmms_eval_tasks.docs_pages docs

# Pin everything again, with hashes and without any index's address.
lock:
	$(PY) -m uv pip compile --quiet --universal --python-version 3.10 --all-extras --generate-hashes --no-annotate --no-emit-index-url pyproject.toml -o requirements.txt
	$(PY) -m uv pip compile --quiet --universal --no-deps --generate-hashes --no-annotate --no-emit-index-url requirements-assets.in -o requirements-assets.txt

clean:
	rm -rf .venv .test-assets results build dist *.egg-info
