"""A resumed run is the uninterrupted one, and what a run leaves: a folder that loads by itself, with the facts of what made it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_cases import ALL, batch_of, media, recipe, row, rows, trainer, weights
from transformers import set_seed

from videosafety.hf_models.families import FAMILIES
from videosafety.training_recipes import run
from videosafety.training_recipes.data import save
from videosafety.training_recipes.recipe import finish, load_model, train
from videosafety.training_recipes.trainer import SFTTrainer

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "weight_decay": 0.1}
SPLIT = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 3,
}
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")  # train_loss is a resumed run's own mean


def history(found: SFTTrainer) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found.state.log_history]


@pytest.mark.parametrize(("more", "name"), [({}, "checkpoint-3"), ({"lora_rank": 2}, "auto")], ids=["full", "LoRA"])
def test_resumed_is_uninterrupted(more: dict[str, Any], name: str, tmp_path: Path) -> None:
    """In the middle of an epoch, with another random state in the process: same losses, rates and figures, same weights to the bit."""
    what = recipe(alarm_head_lr=1e-1, **more)
    whole = trainer(tmp_path, what, rows(8), **ADAM, **SPLIT)
    train(whole)
    assert whole.state.global_step == 8
    for later in (6, 8):
        (tmp_path / f"checkpoint-{later}").rename(tmp_path / f"later-{later}")
    asked = "auto" if name == "auto" else str(tmp_path / name)
    again = trainer(tmp_path, what, rows(8), **ADAM, **SPLIT, resume_from_checkpoint=asked)
    set_seed(99)
    train(again)
    assert history(again) == history(whole)
    assert len({line["loss"] for line in history(whole) if "loss" in line}) == 8
    expected = weights(whole.model)
    for key, value in weights(again.model).items():
        assert torch.equal(value, expected[key]), key


def test_auto_starts_where_nothing_is_and_other_folders_are_errors(tmp_path: Path) -> None:
    one = trainer(tmp_path / "new", resume_from_checkpoint="auto", max_steps=1)
    train(one)
    assert one.state.global_step == 1
    with pytest.raises(ValueError, match="is no folder"):
        train(trainer(tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere")))


# --- what is left ------------------------------------------------------------------------------------------------------------------

FRESH = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True).apply_chat_template([{"role": "user", "content": []}])
assert "videosafety" not in sys.modules
batch = torch.load(sys.argv[2])
with torch.no_grad():
    out = model(**batch)
torch.save((out.logits, getattr(out, "alarm_logits", None)), sys.argv[3])
"""


@pytest.mark.slow  # `make test-slow`
@pytest.mark.parametrize(("name", "alarm", "rank"), [("videollama3", True, 0), ("smolvlm", True, 2), ("qwen2_5_vl", False, 0)])
def test_the_folder_loads_in_a_fresh_process(name: str, alarm: bool, rank: int, tmp_path: Path) -> None:
    data = media() / f"{name}-{alarm}-{rank}.jsonl"
    save([row()], data)
    what = recipe(name, alarm=alarm, lora_rank=rank, data=[str(data)], **({} if alarm else {"stage": "sft"}))
    one = trainer(tmp_path / "out", what, rows(4), per_device_train_batch_size=4, **{**ADAM, "weight_decay": 0.0})
    one.train()
    assert finish(one, what) == tmp_path / "out"
    batch = {key: value for key, value in batch_of(one, rows(2)).items() if "labels" not in key}
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", FRESH, *map(str, (tmp_path / "out", tmp_path / "batch.pt", tmp_path / "found.pt"))]
    done = subprocess.run(command, env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    logits, alarms = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        expected = one.model.eval()(**batch)
        before = load_model(recipe(name, alarm=alarm, train=[]))[0].eval()(**batch)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert (logits - before.logits).abs().max() > 1e-2
    assert (alarms is None) == (not alarm)
    if alarm:
        torch.testing.assert_close(alarms, expected.alarm_logits, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file() == bool(rank)
    assert not list((tmp_path / "out").glob("*.bin"))  # no pickles

    found = json.loads((tmp_path / "out" / run.RECORD).read_text(), parse_constant=pytest.fail)
    assert found["recipe"]["model"] == what.model
    assert found["recipe"]["train"] == what.train
    assert found["settings"]["learning_rate"] == 1e-2
    assert found["data_sha256"] == {str(data): hashlib.sha256(data.read_bytes()).hexdigest()}
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["steps"] == 1
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(), parse_constant=pytest.fail)
    assert state["log_history"][0]["loss_answer"] > 0


def test_a_stage_starts_from_what_the_last_one_left(tmp_path: Path) -> None:
    data = media() / "chain.jsonl"
    save([row()], data)
    first = recipe(stage="sft", train=["language_model", "alarm_tokens"], data=[str(data)])
    one = trainer(tmp_path / "1", first, rows(2), **ADAM)
    one.train()
    finish(one, first)
    second = recipe(train=ALL, model=str(tmp_path / "1"), data=[str(data)])
    two = trainer(tmp_path / "2", second, rows(2))
    for key, value in weights(one.model).items():
        assert torch.equal(weights(two.model)[key], value), key
    assert two.processing_class.chat_template == one.processing_class.chat_template
    two.train()
    finish(two, second)
    heads = FAMILIES["videollama3"].model.from_pretrained(tmp_path / "2").alarm_heads
    assert not torch.equal(heads.visual.bias, one.model.alarm_heads.visual.bias)


def test_no_commit_is_told_for_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout that a wheel happens to be installed in says nothing about it."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "other").touch()
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    assert run.commit() is None
    (tmp_path / "schema.py").touch()
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "y"], check=True)
    found = run.commit()
    assert found is not None
    assert len(found) == 40
    (tmp_path / "schema.py").write_text("changed")
    assert run.commit() == f"{found}+changes"
