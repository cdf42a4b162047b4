"""`make recipe-smoke`: the four stages chained on a tiny model, each from what the last left, then evaluated and plotted."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import ROOT

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from transformers import AutoModelForImageTextToText, AutoProcessor

from videosafety.training_recipes import data, smoke
from videosafety.training_recipes.schema import STAGES

pytestmark = pytest.mark.slow  # `make test-slow`

LEARNS = {  # the paper: vision frozen throughout, vectors until the second stage, heads in it alone
    "stage1_alarm_warmup": {"language_model", "alarm_tokens"},
    "stage2_at_sft": {"language_model", "alarm_tokens", "alarm_heads"},
    "stage3_cot": {"language_model"},
    "stage4_grpo": {"language_model"},
}
PART = {"alarm_tokens": "alarm_tokens.", "alarm_heads": "alarm_heads.", "language_model": "language_model.", "vision": "vision_model."}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("smoke") / "chain"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        smoke.main(["--out", str(out)])
    return out, json.loads(said.getvalue().splitlines()[-1])


@pytest.mark.parametrize("name", LEARNS)
def test_each_stage_moves_what_it_trains_and_leaves_the_rest(chain: tuple[Path, dict[str, Any]], name: str) -> None:
    out, _ = chain
    order = ["base", *LEARNS]
    before, after = (load_file(out / folder / "model.safetensors") for folder in (order[order.index(name) - 1], name))
    assert before.keys() == after.keys()
    for part, prefix in PART.items():
        keys = [key for key in before if prefix in key]
        assert keys
        assert any(not torch.equal(before[key], after[key]) for key in keys) == (part in LEARNS[name]), part


def test_each_stage_starts_from_the_last_and_says_what_made_it(chain: tuple[Path, dict[str, Any]]) -> None:
    out, told = chain
    assert [stage["stage"] for stage in told["stages"]] == list(LEARNS)
    start = out / "base"
    for name in LEARNS:
        record = json.loads((out / name / "training_recipe.json").read_text(encoding="utf-8"))
        assert Path(record["recipe"]["model"]) == start
        start = out / name


@pytest.mark.parametrize("name", LEARNS)
def test_each_folder_loads_and_answers(chain: tuple[Path, dict[str, Any]], name: str) -> None:
    folder = chain[0] / name
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is shown here?"}]}]
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    assert 0 < model.alarm_probs(**inputs)[0, 1] < 1
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_grpo_had_something_to_learn_from(chain: tuple[Path, dict[str, Any]]) -> None:
    """Where all rewards of a group are alike nothing moves, and the stage would prove nothing."""
    last = chain[1]["stages"][-1]["last"]
    assert last["frac_zero_std"] < 1
    assert -2 <= last["reward"] <= 5.1


def test_every_run_is_plotted(chain: tuple[Path, dict[str, Any]]) -> None:
    for stage in chain[1]["stages"]:
        picture, page = map(Path, stage["plots"])
        with Image.open(picture) as image:
            assert min(image.size) > 300
        assert stage["stage"] in page.read_text(encoding="utf-8")


def test_it_is_evaluated_with_the_sampling_that_it_was_trained_with(chain: tuple[Path, dict[str, Any]]) -> None:
    out, told = chain
    assert (told["evaluation"]["n_scored"] or 0) + 4 * told["evaluation"]["unscored"] == 4
    config = json.loads(Path(told["evaluation"]["results"]).read_text(encoding="utf-8"))["config"]
    assert str(out / "stage4_grpo") in str(config["model_args"])
    for key, value in smoke.EVALUATED.items():
        assert key == "fps" or smoke.SMALL[key] == value
        assert f"{key}" in str(config["model_args"])


def test_a_stage_that_moves_what_it_should_not_is_told(tmp_path: Path) -> None:
    for name, moved in (("old", 0.0), ("new", 1.0)):
        (tmp_path / name).mkdir()
        weights = {"model.language_model.w": torch.zeros(2), "alarm_tokens.weight": torch.full((2,), moved)}
        save_file(weights, tmp_path / name / "model.safetensors")
    assert smoke.moved(tmp_path / "old", tmp_path / "new") == {"language_model": False, "alarm_tokens": True}
    save_file({"alarm_tokens.weight": torch.zeros(2)}, tmp_path / "new" / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        smoke.moved(tmp_path / "old", tmp_path / "new")


def test_the_generated_rows_are_sound_for_their_stages(tmp_path: Path) -> None:
    files = smoke.make_data(tmp_path)
    for stage, kind in {"sft": "thoughts", "at_sft": "answers", "grpo": "problems", "dpo": "preferences"}.items():
        assert stage in STAGES
        rows = data.load([files[kind]], stage, tmp_path)
        assert {(row["visual_label"], row["textual_label"]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_it_does_not_write_over_anything(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="not empty"):
        smoke.main(["--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_the_chain_is_the_shipped_recipe() -> None:
    assert list(smoke.CHAIN) == list(LEARNS) == sorted(file.stem for file in (ROOT / "training_recipes" / "videosafety_r1").glob("*.yaml"))
