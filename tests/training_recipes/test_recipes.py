"""Every recipe that ships parses for its script and passes its dry run on a tiny model; launch configs and SLURM script hold together."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from conftest import ROOT

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes import smoke
from videosafety.training_recipes.grpo import Answers
from videosafety.training_recipes.grpo import Settings as GRPOSettings

pytestmark = pytest.mark.slow  # `make test-slow`

FOLDER = ROOT / "training_recipes"
CONFIGS = sorted((FOLDER / "accelerate_configs").glob("*.yaml"))
OWN = {FOLDER / "baselines" / f"{name}.yaml" for name in ("meta_token", "sea")}  # with scripts of their own: test_baselines_*.py
RECIPES = sorted(set(FOLDER.rglob("*.yaml")) - set(CONFIGS) - OWN)
ROWS = {"sft": "answers", "at_sft": "answers", "grpo": "problems", "dpo": "preferences"}
GEOMETRY = ("fps", "max_frames", "max_pixels")


def values(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return smoke.make_data(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: build_tiny(folder / family, family) for family in ("videollama3", "qwen2_5_vl")}


def tried(file: Path, files: dict[str, Path], models: dict[str, Path], out: Path) -> list[str]:
    """A command line that leaves all as the recipe has it but model, data and what a CPU cannot do."""
    model = models["qwen2_5_vl" if "qwen" in file.parent.name else "videollama3"]
    rows = files[ROWS[smoke.stage_of(file)]]
    given = {"model": model, "data": [str(rows)], "data_root": str(rows.parent), "output_dir": out, "dry_run": True, "report_to": "none"}
    if "eval_data" in values(file):  # held-out rows are other rows: other ids and other words
        held_out = out.with_suffix(".jsonl")
        text = rows.read_text(encoding="utf-8").replace('"id": "', '"id": "held-out-').replace('"prompt": "', '"prompt": "Now: ')
        held_out.write_text(text, encoding="utf-8")
        given["eval_data"] = [str(held_out)]
    return smoke.arguments(file, **given)


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_it_passes_its_dry_run(
    file: Path, files: dict[str, Path], tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke.run(file, tried(file, files, tiny_models, tmp_path / "out"))
    told = json.loads(capsys.readouterr().out)
    said = values(file)
    assert told["recipe"]["stage"] == said["stage"]
    assert {part for part, counts in told["parts"].items() if counts.get("trained")} == set(said["train"])
    assert told["one_batch"]["tokens"] > 0
    assert told["memory_estimate_gib"]["sum"] > 0
    assert not list((tmp_path / "out").rglob("*.safetensors"))  # nothing was trained or written


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_it_hides_no_default_that_matters(file: Path) -> None:
    said = values(file)
    wanted = {"model", "data", "data_root", "train", "output_dir", *GEOMETRY, "learning_rate", "per_device_train_batch_size"}
    wanted |= {"gradient_accumulation_steps", "bf16", "seed", "lr_scheduler_type", "weight_decay"}
    wanted |= {"beta", "epsilon", "num_generations", "reward", "max_completion_length"} if said["stage"] == "grpo" else set()
    assert wanted <= said.keys() or "toy_world" in file.parts, wanted - said.keys()
    assert {f"{part.removesuffix('s')}_lr" for part in said["train"] if part.startswith("alarm_")} <= said.keys()
    assert "learning_rate" in said
    assert file.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("folder", ["videosafety_r1", "videosafety_r1_qwen"])
def test_all_stages_see_with_the_same_geometry_and_start_from_the_last(folder: str) -> None:
    """Defect 22 of the released code: merge 2 in three stages, merge 8 in the fourth."""
    stages = [values(FOLDER / folder / f"{stage}.yaml") for stage in smoke.CHAIN]
    assert len({tuple(stage[key] for key in GEOMETRY) for stage in stages}) == 1
    assert [stage["model"] for stage in stages[1:]] == [stage["output_dir"] for stage in stages[:-1]]
    sampling = ",".join(f"{key}={stages[0][key]:g}" for key in GEOMETRY)
    assert sampling in (FOLDER / folder / "README.md").read_text(encoding="utf-8"), "the README evaluates with another sampling"


def test_the_recipe_has_the_papers_values() -> None:
    stages = {stage: values(FOLDER / "videosafety_r1" / f"{stage}.yaml") for stage in smoke.CHAIN}
    for stage in list(stages.values())[:3]:
        assert stage["per_device_train_batch_size"] * stage["gradient_accumulation_steps"] * 8 == 128
    sft, grpo = stages["stage2_at_sft"], stages["stage4_grpo"]
    assert (sft["learning_rate"], sft["alarm_token_lr"], sft["alarm_head_lr"]) == (1e-6, 1e-5, 1e-5)
    assert (sft["visual_loss_weight"], sft["textual_loss_weight"]) == (0.1, 0.1)
    assert grpo["per_device_train_batch_size"] * grpo["gradient_accumulation_steps"] * 8 / grpo["num_generations"] == 8
    assert (grpo["num_generations"], grpo["epsilon"], grpo["beta"], grpo["max_completion_length"]) == (6, 0.2, 0.04, 768)
    assert (grpo["max_grad_norm"], grpo["weight_decay"], grpo["temperature"]) == (5.0, 0.01, 1.0)
    assert "alarm_tokens" not in [*stages["stage3_cot"]["train"], *grpo["train"]]


def test_heads_alone_can_be_fitted_to_a_finished_model(
    files: dict[str, Path], tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the README says, for when the stages after AT-SFT have moved the language model under them."""
    file = FOLDER / "videosafety_r1" / "stage2_at_sft.yaml"
    assert "--train alarm_heads --output_dir" in (file.parent / "README.md").read_text(encoding="utf-8")
    argv = tried(file, files, tiny_models, tmp_path / "out")
    smoke.run(file, [*argv[: argv.index("--dry_run")], "--train", "alarm_heads", *argv[argv.index("--dry_run") :]])
    told = json.loads(capsys.readouterr().out)
    assert {part for part, counts in told["parts"].items() if counts["trained"]} == {"alarm_heads"}


def test_the_command_line_overrides_the_recipe_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    file = FOLDER / "videosafety_r1" / "stage4_grpo.yaml"
    argv = smoke.arguments(file, output_dir=tmp_path, beta=0.5, train=["language_model", "alarm_tokens"], reward="dra_paper")
    recipe, settings, answers = recipes.parse(argv, GRPOSettings, Answers)
    assert (settings.beta, recipe.train, answers.reward) == (0.5, ["language_model", "alarm_tokens"], "dra_paper")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(file.read_text(encoding="utf-8") + "gama: 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="gama"):
        recipes.parse(smoke.arguments(wrong, output_dir=tmp_path), GRPOSettings, Answers)


# --- launching -------------------------------------------------------------------------------------------------------------------


def launched(config: Path, *more: str) -> Any:
    """What accelerate makes of a config file and a command line."""
    args = launch_command_parser().parse_args(["--config_file", str(config), *more, "script.py"])
    return _validate_launch_command(args)[0]


KINDS = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def test_there_is_a_config_for_every_kind() -> None:
    assert {file.stem for file in CONFIGS} == set(KINDS)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_takes_the_config(file: Path) -> None:
    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert config.distributed_type.value == KINDS[file.stem]
    args = launched(file)
    assert args.num_processes == (1 if file.stem == "single" else 8)
    assert args.mixed_precision == "bf16"
    assert args.gradient_accumulation_steps is None  # the recipe's; DeepSpeed refuses two that differ
    assert args.gradient_clipping is None
    assert (args.use_deepspeed, args.use_fsdp) == (file.stem.startswith("zero"), file.stem == "fsdp2")
    if file.stem.startswith("zero"):
        assert args.zero_stage == int(file.stem[-1])
        assert args.zero3_save_16bit_model is True or file.stem == "zero2"  # else nobody has weights to save


def test_fsdp2_wraps_the_language_models_layers_alone(tiny_models: dict[str, Path]) -> None:
    """By accelerate's own policy. The frozen tower stays in the root group, where text-only and video rows may meet in one step."""
    file = FOLDER / "accelerate_configs" / "fsdp2.yaml"
    other = re.search(r"--fsdp_transformer_layer_cls_to_wrap (\w+)", file.read_text(encoding="utf-8"))
    assert other
    for family, more in (("videollama3", ()), ("qwen2_5_vl", ("--fsdp_transformer_layer_cls_to_wrap", other[1]))):
        args = launched(file, *more)
        assert (args.fsdp_version, args.fsdp_auto_wrap_policy) == (2, "TRANSFORMER_BASED_WRAP")
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[args.fsdp_transformer_layer_cls_to_wrap],
        )
        model = FAMILIES[family].model.from_pretrained(tiny_models[family])
        policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
        assert policy is not None
        wrapped = [key for key, module in model.named_modules() if policy(module)]
        assert len(wrapped) == model.config.get_text_config().num_hidden_layers
        assert all("language_model" in key for key in wrapped)


STUB = """#!/bin/bash
case "$(basename "$0")" in
  scontrol) echo node-a; echo node-b ;;
  srun) shift; SLURM_NODEID=1 exec "$@" ;;  # without srun's own option: the second node's part
  python) printf '%s\\n' "$@" ;;
esac
"""


def slurm(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The script with SLURM's commands replaced: python prints what it would be started with on the second node."""
    for program in ("scontrol", "srun", "python"):
        (tmp_path / program).write_text(STUB, encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    given = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "41234"} | env
    command = ["bash", str(FOLDER / "slurm" / "train.slurm"), *arguments]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | given
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


STAGE1 = "training_recipes/videosafety_r1/stage1_alarm_warmup.yaml"


def test_slurm_keeps_the_global_batch_on_more_nodes(tmp_path: Path) -> None:
    done = slurm(tmp_path, "sft", STAGE1, "--seed", "7")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[1:]
    launch, train = words[: words.index("--config")], words[words.index("--config") :]
    args = launch_command_parser().parse_args(launch[2:])  # after -m accelerate.commands.launch
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, 1)
    assert (args.main_process_ip, args.main_process_port, args.gradient_accumulation_steps) == ("node-a", 21234, 8)
    assert (args.module, args.training_script) == (True, "videosafety.training_recipes.sft")
    assert train == ["--config", STAGE1, "--seed", "7", "--gradient_accumulation_steps", "8"]


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ((), {}, "usage"),
        (("train", STAGE1), {}, "sft, grpo or dpo, not train"),
        (("sft", "nowhere.yaml"), {}, "nowhere.yaml: no such recipe"),
        (("sft", STAGE1), {"SLURM_GPUS_ON_NODE": "3"}, "6 GPUs do not divide 128 micro-batches"),
        (("sft", STAGE1, "--gradient_accumulation_steps", "4"), {}, "set RECIPE_GPUS"),
        (("sft", STAGE1), {"ACCELERATE_CONFIG": "nowhere.yaml"}, "no such accelerate config"),
    ],
)
def test_slurm_says_what_cannot_be(tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], message: str) -> None:
    done = slurm(tmp_path, *arguments, **env)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# --- what the pages say ----------------------------------------------------------------------------------------------------------

PAGES = sorted([*FOLDER.glob("*.md"), *FOLDER.glob("*/*.md"), ROOT / "docs" / "training.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_pages_name_modules_files_and_anchors_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m (videosafety\.[\w.]+)", text)):
        importlib.import_module(module)
    for file in set(re.findall(r"(?<![\w/])(training_recipes/[\w./]+\.(?:yaml|slurm|py|md))", text)):
        assert (ROOT / file).is_file(), file
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        link, _, anchor = target.partition("#")
        if "://" in link:
            continue
        found = page if not link else (page.parent / link).resolve()
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target
