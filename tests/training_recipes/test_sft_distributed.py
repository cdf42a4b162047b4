"""Two processes (gloo, DDP) are one: weights after two steps, what was logged, held-out figures, and the folder that is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sft_processes
import torch
from sft_cases import assert_same, folder, media, row, weights
from transformers import set_seed

from videosafety.hf_models.families import FAMILIES
from videosafety.training_recipes.data import save
from videosafety.training_recipes.recipe import load_model

pytestmark = pytest.mark.slow  # `make test-slow`


@pytest.mark.timeout(600)  # some 40 seconds of CPU, on machines that may be busy
def test_two_processes_are_one(tmp_path: Path) -> None:
    save([row()], media() / "rows.jsonl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if "tests" in path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, sft_processes.__file__, str(folder()), str(media()), str(tmp_path)]
    both = [subprocess.Popen(command, env=env | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE) for rank in ("0", "1")]
    try:
        for process in both:
            _, said = process.communicate(timeout=500)
            assert process.returncode == 0, said.decode()[-3000:]
    finally:
        for process in both:
            process.kill()
    found = torch.load(tmp_path / "found.pt")
    for case in sft_processes.CASES:
        alone = sft_processes.run(case, str(folder()), str(media()), tmp_path / "alone", processes=1)
        before = _start(case)
        moved = {key: value - before[key] for key, value in alone["weights"].items()}
        assert any(value.abs().max() > 0 for value in moved.values())
        assert_same({key: value - before[key] for key, value in found[case]["weights"].items()}, moved, 1e-3)
        for line, other in zip(found[case]["log"], alone["log"], strict=True):
            for key, value in other.items():
                assert line[key] == (None if value is None else pytest.approx(value, rel=1e-3)), (case, key)
        assert found[case]["eval"] == pytest.approx(alone["eval"], rel=1e-3), case
        saved = FAMILIES["videollama3"].model.from_pretrained(tmp_path / case)
        if case != "LoRA":
            assert_same(weights(saved), found[case]["weights"])


def _start(case: str) -> dict[str, torch.Tensor]:
    set_seed(3)
    what = sft_processes.recipe(model=str(folder()), **sft_processes.CASES[case])
    return weights(load_model(what)[0])
