"""Every set that is fetched, from its small copy in the true layout, in one run of the real command line with a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Outcome
from videosafety.lmms_eval_tasks.catalog import catalog

SETS = [found for found in catalog().values() if found.source.kind not in ("own", "none")]
TASKS = [task.name for found in SETS for task in found.tasks if not task.name.endswith("_prompted")]
GROUP = "holisafe_typed"  # one group is run as such; the contract tests hold the others


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Outcome:
    root = tmp_path_factory.mktemp("all")
    (root / "cwd").mkdir()
    for found in SETS:
        importlib.import_module(f"sets_{found.name}").local_copy(root / "data")
    asked = [GROUP, *(name for name in TASKS if not (name.startswith(GROUP) and not name.endswith("_text")))]
    command = [str(Path(sys.executable).with_name("lmms-eval")), "--model", "videosafety_r1", "--model_args", f"pretrained={tiny}"]
    command += ["--tasks", ",".join(asked), "--gen_kwargs", "max_new_tokens=4", "--batch_size", "8"]
    command += ["--output_path", str(root / "out"), "--log_samples"]
    settings = {"VIDEOSAFETY_DATA_DIR": str(root / "data"), "VIDEOSAFETY_JUDGE": "refusal"}
    ran = subprocess.run(command, cwd=root / "cwd", env=os.environ | settings, capture_output=True, text=True, timeout=290)
    return Outcome(ran.stdout + ran.stderr, root / "out", ran.returncode)


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_shown_and_scored_or_says_why_not(done: Outcome, task: str) -> None:
    results = done.results()["results"]
    assert task in results, f"it was not run; the log ends: {done.log[-2000:]}"
    samples, figures = done.samples(task), results[task]
    assert samples
    assert not any("media_error" in json.dumps(sample) for sample in samples)
    assert figures["n_scored,none"] + round(len(samples) * figures["unscored,none"]) == len(samples)
    graded = [name for name in figures if name.startswith("graded_") and "stderr" not in name]
    assert all(figures[name] is None for name in graded), "the judge here is no language model, and grades nothing"


def test_the_holisafe_group_averages_its_types_plainly(done: Outcome) -> None:
    results = done.results()["results"]
    rates = [results[f"holisafe_typed_{kind}"]["dsr,none"] for kind in ("ssu", "suu", "usu", "uuu")]
    assert results["holisafe_typed"]["dsr,none"] == (pytest.approx(sum(rates) / 4) if None not in rates else None)


def test_siuos_choices_end_as_theirs_do(done: Outcome) -> None:
    assert done.samples("siuo_mcqa")[0]["input"].endswith("\n\nChocie:")
