"""DPO in two processes (gloo) is DPO in one: the same weights after a step, whichever process has the videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dpo_cases import command, preferences, write_rows
from safetensors.torch import load_file

from conftest import write_video

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import dpo

pytestmark = pytest.mark.slow  # `make test-slow`


def test_two_processes_are_one(tmp_path: Path) -> None:
    for name, frames in (("a.mp4", 16), ("b.mp4", 24)):
        write_video(tmp_path / name, frames=frames)
    rows = write_rows(preferences(4), tmp_path / "rows.jsonl")
    start = build_tiny(tmp_path / "tiny")

    def arguments(out: str, size: int) -> list[str]:
        more = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "per_device_train_batch_size": size}
        return command(start, rows, tmp_path / out, **more)

    dpo.main(arguments("one", 2))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    script = [*launch, "videosafety.training_recipes.dpo", *arguments("two", 1), "--ddp_backend", "gloo"]
    environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]

    one, two, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", tmp_path / "two", start))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert max(float((one[name] - before[name]).abs().max()) for name in one) > 1e-3
    losses = [
        [entry["loss"] for entry in json.loads((tmp_path / out / "trainer_state.json").read_text())["log_history"] if "loss" in entry]
        for out in ("one", "two")
    ]
    assert len(losses[0]) == 2
    assert torch.allclose(*map(torch.tensor, losses), atol=1e-5)
    assert json.loads((tmp_path / "two" / "training_recipe.json").read_text())["processes"] == 2
