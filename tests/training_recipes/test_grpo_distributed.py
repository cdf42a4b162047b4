"""Two processes (gloo) take the step that one takes: with groups without a signal, with a process that has none, with parted groups."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grpo_cases as cases
import grpo_distributed
import pytest
import torch

pytestmark = pytest.mark.slow  # `make test-slow`

SCRIPT = Path(grpo_distributed.__file__)
CASES = ("whole", "idle", "split", "projector")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def two(names: Sequence[str], scratch: Path) -> None:
    whole = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(cases.checkpoint()), str(cases.media()), str(scratch), *names]
    running = []
    for rank in range(2):
        log = (scratch / f"{rank}.log").open("w")
        own = os.environ | whole | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append((subprocess.Popen(command, env=own, stdout=log, stderr=log), log))
    for process, log in running:
        code = process.wait(timeout=600)
        log.close()
        assert code == 0, Path(log.name).read_text(encoding="utf-8")[-3000:]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("pair")
    two([*CASES, "sharded"], scratch)
    return scratch


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case: str, pair: Path) -> None:
    grpo_distributed.work(case, pair, 1)
    compare(pair, case, case)


def test_sharded_weights(pair: Path) -> None:
    """FSDP2: prefill and features run outside of the wrapped model's own forward, and must find weights whole there."""
    grpo_distributed.sharded(pair, 1)
    one, both = torch.load(pair / "sharded-1.pt"), torch.load(pair / "sharded-2.pt")
    assert one["completions"] == both["completions"]
    assert torch.tensor(one["reference"]) == pytest.approx(torch.tensor(both["reference"]), abs=1e-5)
    assert one.keys() == both.keys()
    for name in one.keys() - {"completions", "reference"}:
        assert (one[name] - both[name]).abs().max() <= 1e-5 * one[name].abs().max().clamp(min=1), name


def compare(scratch: Path, mine: str, other: str) -> None:
    one, two = torch.load(scratch / f"{mine}-1.pt"), torch.load(scratch / f"{other}-2.pt")
    assert one["weights"].keys() == two["weights"].keys()
    moved = 0.0
    start_ = cases.weights(cases.trainer(Path(cases.scratch().name) / "start").model)
    for name, value in one["weights"].items():
        assert (value - two["weights"][name]).abs().max() <= 1e-5, name
        moved = max(moved, float((value - start_[name]).abs().max()))
    assert moved > 1e-3
    for key in ("kl", "reward", "frac_zero_std", "frac_unscored", "grad_norm"):
        alone, both = ([log[key] for log in run["log"] if key in log] for run in (one, two))
        assert alone == pytest.approx(both, rel=1e-4, abs=1e-6), key
