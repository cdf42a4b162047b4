"""The meta-token baseline: its loss by hand, one batch in any split and in two processes, and a checkpoint that claims no probability."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from conftest import ROOT

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import data, meta_token, sft, smoke
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes.data import DataError
from videosafety.training_recipes.schema import Row

YAML = ROOT / "training_recipes" / "baselines" / "meta_token.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("meta")
    rows = data.load([smoke.make_data(folder)["answers"]], "at_sft", folder)
    for row in rows:
        row["category"] = {"1-0": "weapons", "3-0": "fraud", "3-1": "weapons"}.get(row["id"])
    data.save(rows, folder / "kinds.jsonl")
    return {"tiny": build_tiny(folder / "tiny"), "rows": folder / "kinds.jsonl"}


def command(world: dict[str, Path], out: Path, **more: Any) -> list[str]:
    settings = {"data": [str(world["rows"])], "data_root": world["rows"].parent, "model": world["tiny"], "output_dir": out}
    return smoke.arguments(YAML, **settings | {"max_steps": 1, "report_to": "none", "save_strategy": "no"} | more)


def trainer_of(world: dict[str, Path], out: Path) -> tuple[meta_token.MetaTokenTrainer, list[Row]]:
    recipe, settings = recipes.parse(command(world, out), sft.SFTSettings)
    rows, _ = recipes.load_rows(recipe)
    model, processor = recipes.load_model(recipe)
    return meta_token.trainer_of(recipe, settings, model, processor, rows), rows


def test_its_visual_term_is_the_cross_entropy_over_safe_and_kinds(world: dict[str, Path], tmp_path: Path) -> None:
    trainer, rows = trainer_of(world, tmp_path)
    assert trainer.data_collator.kinds == ["fraud", "weapons"]
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(trainer.model.eval(), dict(batch))
    sums, figures, _ = trainer.terms(trainer.model, dict(batch))
    logits = trainer.model.alarm_heads.logits
    assert logits.shape == (8, 3)
    chances = logits.softmax(-1)
    of = {("safe", None): 0, ("harm", "fraud"): 1, ("harm", "weapons"): 2}
    expected = []
    for row, chance in zip(rows, chances, strict=True):
        known = row["visual_label"] == 0 or row["category"]
        place = of["safe" if row["visual_label"] == 0 else "harm", row["category"]] if known else None
        expected.append(-torch.log(1 - chance[0] if place is None else chance[place]))
    assert any(row["visual_label"] == 1 and not row["category"] for row in rows)  # harmful, of a kind that nobody named
    assert torch.allclose(torch.stack(expected).sum(), sums[1], rtol=1e-5)
    assert torch.allclose(figures[:, 2], torch.stack(expected), rtol=1e-4)
    answer = functional.cross_entropy(trainer.model(**inputs(batch)).logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert torch.allclose(loss, answer + sums[1] / 8, rtol=1e-5)  # weight 1, all rows are labelled

    loss.backward()
    with_gradient = {name.split(".")[0] for name, p in trainer.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient >= {"alarm_heads", "alarm_tokens", "model"}
    assert trainer.model.alarm_heads.visual.weight.grad is None


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key not in ("labels", "alarm_labels", "kinds")}


def run(world: dict[str, Path], out: Path, launch: list[str] | None = None, **more: Any) -> dict[str, torch.Tensor]:
    argv = command(world, out, optim="sgd", learning_rate=0.1, alarm_token_lr=0.1, alarm_head_lr=0.1, warmup_steps=0, **more)
    if launch is None:
        meta_token.main(argv)
    else:
        environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launch, *argv], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return {key: value for key, value in load_file(out / "model.safetensors").items() if "alarm_heads.visual" not in key}


@pytest.mark.slow  # `make test-slow`
def test_any_split_of_a_batch_and_two_processes_are_one(world: dict[str, Path], tmp_path: Path) -> None:
    whole = run(world, tmp_path / "whole", per_device_train_batch_size=4)
    parts = run(world, tmp_path / "parts", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    launch += ["videosafety.training_recipes.meta_token"]
    ranks = run(world, tmp_path / "ranks", launch, per_device_train_batch_size=2, ddp_backend="gloo")
    before = load_file(world["tiny"] / "model.safetensors")
    finite = [key for key in whole if "textual" not in key]
    for other in (parts, ranks):
        assert max(float((whole[key] - other[key]).abs().max()) for key in finite) < 1e-5
    assert any(not torch.equal(whole[key], before[key]) for key in finite if key in before)


def test_its_checkpoint_loads_and_claims_no_probability(world: dict[str, Path], tmp_path: Path) -> None:
    meta_token.main(command(world, tmp_path / "out"))
    assert json.loads((tmp_path / "out" / meta_token.RECORD).read_text())["classes"] == ["safe", "fraud", "weapons"]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ids = torch.tensor([[model.config.visual_alarm_token_id, 5, model.config.textual_alarm_token_id, 7]])
    assert model.alarm_probs(input_ids=ids).isnan().all()
    assert model(input_ids=ids).logits.isfinite().all()
    assert "alarm_heads.kinds.2.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_its_recipe_passes_its_dry_run(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta_token.main(command(world, tmp_path / "out", dry_run=True))
    facts = json.loads(capsys.readouterr().out)
    assert facts["one_batch"]["tokens"] > 0
    assert facts["parts"]["alarm_heads"]["trained"] == 32 * 16 + 16 + 16 * 3 + 3  # the MLP, and not the two linear heads


@pytest.mark.parametrize(
    ("more", "says"),
    [({"lora_rank": 2}, "lora_rank 0"), ({"stage": "sft", "train": ["language_model"]}, "stage at_sft")],
    ids=["lora", "stage"],
)
def test_a_recipe_without_a_head_to_train_is_refused(world: dict[str, Path], tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        meta_token.main(command(world, tmp_path / "out", **more))


def test_rows_without_kinds_are_refused(world: dict[str, Path], tmp_path: Path) -> None:
    rows = [{**row, "category": None} for row in data.load([world["rows"]], "at_sft", world["rows"].parent)]
    data.save(rows, tmp_path / "rows.jsonl")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a category"):
        meta_token.main(command(world, tmp_path / "out", data=[str(tmp_path / "rows.jsonl")]))
