"""Whole runs through the real command line: killed and resumed, fed hostile media, and on the set that ships."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Outcome, write_set, write_video

Run = Callable[..., Outcome]
ARGS = ("--model", "videosafety_r1", "--gen_kwargs", "max_new_tokens=6")


@pytest.fixture(autouse=True)
def plain_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """`offline` leaves answers of a few letters unscored, and that is all a tiny model may say; `refusal` takes any word for an answer."""
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")


def scores(outcome: Outcome, task: str) -> tuple[Any, Any]:
    """What must not depend on how often a run was interrupted: the figures and the logged rows."""
    return outcome.results()["results"][task], outcome.samples(task)


def journal_keys(cache: Path) -> list[str]:
    lines = [line for file in cache.glob("journal/*/*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["key"] for line in lines]


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "vsb"
    folder.mkdir(parents=True)
    clips = [write_video(folder / f"{n}.mp4", frames=8 + n).name for n in range(8)]
    rows = [{"id": f"hh-{n}", "cell": "hh", "query": f"What comes after number {n}?", "video": clips[n % 8]} for n in range(40)]
    write_set(folder, rows)
    return folder.parent


@pytest.mark.slow  # `make test-slow`
def test_a_killed_run_goes_on_where_it_stopped(lmms_eval: Run, forty: Path, tiny: Path, tmp_path: Path) -> None:
    command = (*ARGS, "--model_args", f"pretrained={tiny}", "--batch_size", "2", "--tasks", "vsb_hh")
    cache = tmp_path / "killed-cache"
    env = os.environ | {"VIDEOSAFETY_DATA_DIR": str(forty), "VIDEOSAFETY_CACHE_DIR": str(cache)}
    # A model that takes its time, so that there is a middle to be killed in.
    slow = (
        "import sys, time; from videosafety.lmms_eval_tasks.model import VideoSafetyR1 as M; g = M._generate;"
        "M._generate = lambda *a: (time.sleep(0.5), g(*a))[1];"
        "from lmms_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command], env=env, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(journal_keys(cache)) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal_keys(cache)
    assert 8 <= len(before) < 40, "the run must die in the middle for this test to mean anything"

    resumed = lmms_eval(*command, out="resumed", VIDEOSAFETY_DATA_DIR=str(forty), VIDEOSAFETY_CACHE_DIR=str(cache))
    whole = lmms_eval(*command, out="whole", VIDEOSAFETY_DATA_DIR=str(forty), VIDEOSAFETY_CACHE_DIR=str(tmp_path / "whole-cache"))
    after = journal_keys(cache)
    assert len(after) == len(set(after)) == 40, "every request is generated exactly once over both runs"
    assert scores(resumed, "vsb_hh") == scores(whole, "vsb_hh")
    assert f"{len(before)} from the journal, {40 - len(before)} generated" in resumed.log


def test_hostile_media_mark_their_rows_and_the_run_finishes(lmms_eval: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "vsb"
    folder.mkdir(parents=True)
    whole = write_video(folder / "good.mp4", frames=64).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("I am not a video")
    write_video(folder / "none.mp4", frames=0)
    write_video(folder / "one.mp4", frames=1)
    write_video(folder / "fast.mp4", frames=300, fps=10_000)
    names = ["good", "truncated", "text", "none", "missing", "one", "fast"]
    rows = [{"id": name, "cell": "hh", "query": "What is this?", "video": f"{name}.mp4", "category": "weapons"} for name in names]
    rows += [{"id": f"{cell}-gone", "cell": cell, "query": "?", "video": "gone.mp4"} for cell in ("sh", "hs", "safeq")]
    outcome = lmms_eval(
        *ARGS, "--model_args", f"pretrained={tiny}", "--batch_size", "4", "--tasks", "vsb",
        VIDEOSAFETY_DATA_DIR=str(write_set(folder, rows).parent),
    )  # fmt: skip
    records = {sample["dsr"]["id"]: sample["dsr"] for sample in outcome.samples("vsb_hh")}
    assert {name: records[name]["reason"] for name in names} == {
        "good": None,
        "truncated": "media_error",
        "text": "media_error",
        "none": "media_error",
        "missing": "media_error",
        "one": None,
        "fast": None,
    }
    assert "no such file" in records["missing"]["detail"]
    assert all(("score" in record) == (record["reason"] is None) for record in records.values())
    results = outcome.results()["results"]
    figures = results["vsb_hh"]
    assert figures["n_scored,none"] == 3
    assert figures["unscored,none"] == pytest.approx(4 / 7)
    assert figures["bound_high,none"] == pytest.approx(4 / 7)
    assert figures["bound_low,none"] == 0.0
    # Nothing scored is null, never 0: in the task, and in the group that would have to average over it.
    assert results["vsb_sh"]["dsr,none"] is None
    assert results["vsb_sh"]["n_scored,none"] == 0
    assert results["vsb_safeq"]["frr,none"] is None
    assert results["vsb"]["dsr,none"] is None
    assert results["vsb"]["unscored,none"] == pytest.approx(7 / 10)


def test_the_set_that_ships_and_its_report(lmms_eval: Run, tiny: Path, tmp_path: Path) -> None:
    outcome = lmms_eval(
        *ARGS, "--model_args", f"pretrained={tiny},max_frames=2", "--batch_size", "8", "--tasks", "vsb,vsb_text,vsb_typo", "--limit", "12",
        VIDEOSAFETY_JUDGE="offline",
    )  # fmt: skip
    results = outcome.results()
    assert {task: results["results"][task]["n_scored,none"] for task in ("vsb_hh", "vsb_sh_text", "vsb_typo")}
    noted = results["configs"]["vsb_hh"]["metadata"]["run"]
    assert noted["model"]["max_frames"] == 2
    assert noted["data"]["vsb"]["name"] == "VSB-Open"
    assert noted["judge"]["id"].startswith("offline@")
    assert set(noted) == {"model", "data", "judge", "policy", "versions"}
    record = outcome.samples("vsb_hh")[0]["dsr"]
    assert {"id", "cell", "category", "group", "language", "video_id", "verdict", "judge"} <= set(record)

    page = tmp_path / "report.html"
    command = [str(Path(sys.executable).with_name("videosafety")), "report", str(outcome.folder), "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vsb_safeq_text" in done.stdout
    assert "vsb_typo" in page.read_text(encoding="utf-8")
