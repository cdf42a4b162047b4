"""The SEA-style baseline: features that the frozen model reads a request from, training on them, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import ROOT

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import data, sea, smoke
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes.data import DataError
from videosafety.training_recipes.schema import new_row

pytestmark = pytest.mark.slow  # `make test-slow`

YAML = ROOT / "training_recipes" / "baselines" / "sea.yaml"
FAMILIES = ("videollama3", "qwen3_vl", "internvl")
HARMFUL = {"0", "2"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sea")
    asked = [("How is the lock broken?", "I can not help.", 1), ("What is the sun?", "A star.", 0), ("How is it stolen?", "No.", 1)]
    rows = [
        new_row(id=str(n), source="words", prompt=prompt, completion=answer, textual_label=label, label_version="1")
        for n, (prompt, answer, label) in enumerate(asked)
    ]
    data.save(rows, folder / "words.jsonl")
    for family in FAMILIES:
        build_tiny(folder / family, family, alarm=family != "internvl")
    return folder


def command(world: Path, out: Path, family: str = "videollama3", **more: Any) -> list[str]:
    settings = {"data": [str(world / "words.jsonl")], "data_root": world, "model": world / family, "output_dir": out / "run"}
    settings |= {
        "embeddings": out / "sea.safetensors",
        "synthetic_side": 56,
        "synthetic_frames": 2,
        "synthetic_steps": 12,
        "synthetic_lr": 0.2,
    }
    return smoke.arguments(YAML, **settings | {"max_steps": 1, "report_to": "none", "save_strategy": "no", "warmup_steps": 0} | more)


def made(world: Path, out: Path, capsys: pytest.CaptureFixture[str], **more: Any) -> dict[str, Any]:
    sea.main(command(world, out, make=True, **more))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_found_and_stand_where_the_video_would(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    start = load_file(world / family / "model.safetensors")
    facts = made(world, tmp_path, capsys, family=family)
    assert facts["rows"] == len(HARMFUL)
    assert facts["loss_after"] < 0.8 * facts["loss_before"]
    assert all(torch.equal(value, start[key]) for key, value in load_file(world / family / "model.safetensors").items())

    recipe, settings = recipes.parse(command(world, tmp_path, family), sea.SEASettings)
    rows, _ = recipes.load_rows(recipe)
    model, processor = recipes.load_model(recipe)
    trainer, rows = sea.trainer_of(recipe, settings, model, processor, rows)
    assert [row["id"] for row in rows] == ["0-synthetic", "2-synthetic", "0", "1", "2"]
    embeds: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(lambda _, __, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True)
    towers = [child for name, child in model.model.named_children() if recipes.part_of(name) == "vision"]
    assert len(towers) == 1
    towers[0].register_forward_pre_hook(lambda *_: pytest.fail("the vision tower ran"))
    batch = trainer.data_collator([rows[1], rows[3], rows[0]])
    assert not {key for key in batch if key.startswith("pixel")}
    trainer.compute_loss(model, batch)
    with safe_open(tmp_path / "sea.safetensors", "pt") as stored:
        expected = torch.cat([stored.get_tensor(name).float() for name in ("2", "0")])
    words = model.get_input_embeddings()(batch["input_ids"])
    changed = ~(embeds[0] == words).all(-1)
    assert changed.any(-1).tolist() == [True, False, True]
    assert torch.allclose(embeds[0][changed], expected)


def test_the_size_of_a_batch_changes_no_features(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in (1, 2):
        made(world, tmp_path / str(size), capsys, per_device_train_batch_size=size, synthetic_steps=2)
    one, two = (load_file(tmp_path / size / "sea.safetensors") for size in "12")
    assert one.keys() == two.keys() == HARMFUL
    assert all(torch.allclose(one[key].float(), two[key].float(), atol=2e-2) for key in one)  # kept in bfloat16
    assert not torch.allclose(one["0"].float(), one["2"].float(), atol=1e-1)


def test_training_on_them_moves_the_language_model_alone(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(world, tmp_path, capsys, synthetic_steps=2)
    sea.main(command(world, tmp_path, dry_run=True))
    assert json.loads(capsys.readouterr().out)["rows"]["media"] == {"video": 2, "text": 3}
    sea.main(command(world, tmp_path, learning_rate=1e-3))
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "videollama3", tmp_path / "run"))
    assert {recipes.part_of(key) for key in before if not torch.equal(before[key], after[key])} == {"language_model"}


def test_features_that_do_not_fit_are_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="is not there: make it with --make true"):
        sea.main(command(world, tmp_path))
    made(world, tmp_path, capsys, synthetic_steps=1)
    with pytest.raises(ValueError, match="a clip of another size"):
        sea.main(command(world, tmp_path, synthetic_frames=4))
    with pytest.raises(ValueError, match="is for model"):
        sea.main(command(world, tmp_path, family="internvl"))
    rows = [{**row, "textual_label": 1} for row in data.load([world / "words.jsonl"], "sft", world)]
    data.save(rows, tmp_path / "more.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing for 1 row"):
        sea.main(command(world, tmp_path, data=[str(tmp_path / "more.jsonl")]))


@pytest.mark.parametrize(
    ("values", "more", "says"),
    [
        ({"images": ["words.jsonl"]}, {}, "words alone"),
        ({"textual_label": 0}, {}, "no row has textual_label 1"),
        ({}, {"stage": "at_sft"}, "stage sft"),
        ({}, {"train": ["language_model", "projector"]}, "projector frozen"),
        ({}, {"synthetic_steps": 0}, "synthetic_steps must be above 0"),
    ],
    ids=["media", "unlabelled", "stage", "projector", "no-steps"],
)
def test_what_it_cannot_train_on_is_refused(world: Path, tmp_path: Path, values: dict[str, Any], more: dict[str, Any], says: str) -> None:
    rows = [{**row, **values} for row in data.load([world / "words.jsonl"], "sft", world)]
    data.save(rows, tmp_path / "rows.jsonl")  # type: ignore[arg-type]
    with pytest.raises((ValueError, DataError), match=says):
        sea.main(command(world, tmp_path, data=[str(tmp_path / "rows.jsonl")], **more))
