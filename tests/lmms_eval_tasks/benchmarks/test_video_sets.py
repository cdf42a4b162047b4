"""The video sets through the real lmms-eval CLI, one task of each in one run, with clips that are cut off or missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sets_safevid
import sets_safewatch
import sets_vasafetybench
import sets_video_safetybench

from conftest import Outcome
from fault_server import fault_server

TASKS = {"video_safetybench_benign": "dsr", "vasafetybench_dm": "dsr", "safewatch_bench": "guardrail_exact", "safevid_350k_heldout": "dsr"}
MISSING, CUT = "video/13_Elections/Some_Kind/2.mp4", "Video/6-Fraud/DM/0.mp4"


@pytest.mark.slow  # `make test-slow`
def test_every_set_runs_and_a_clip_that_cannot_be_seen_is_unscored(lmms_eval: Callable[..., Outcome], tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for one in (sets_video_safetybench, sets_vasafetybench, sets_safewatch, sets_safevid):
        one.local_copy(data)
    (data / "video_safetybench" / MISSING).unlink()
    cut = data / "vasafetybench" / CUT
    cut.write_bytes(cut.read_bytes()[:200])
    with fault_server() as judge:
        outcome = lmms_eval(
            *("--model", "videosafety_r1", "--model_args", f"pretrained={tiny}", "--tasks", ",".join(TASKS)),
            *("--gen_kwargs", "max_new_tokens=4"),
            VIDEOSAFETY_DATA_DIR=str(data),
            VIDEOSAFETY_CACHE_DIR=str(tmp_path / "cache"),
            VIDEOSAFETY_JUDGE=f"rjscore:{judge.url}#m",
        )
    results = outcome.results()["results"]
    assert {task: results[task]["n_scored,none"] for task in TASKS if task != "safewatch_bench"} == {
        "video_safetybench_benign": 2,
        "vasafetybench_dm": 8,
        "safevid_350k_heldout": 3,
    }
    assert results["video_safetybench_benign"]["rjscore_asr,none"] == 0.0
    assert results["video_safetybench_benign"]["rjscore_risk,none"] == 1.1  # the server's 1 with 0.9 and 2 with 0.1
    assert results["vasafetybench_dm"]["parity_attack_rate,none"] is None
    assert len(outcome.samples("safewatch_bench")) == 6
    reasons = {task: [sample[metric].get("reason") for sample in outcome.samples(task)] for task, metric in TASKS.items()}
    assert reasons["video_safetybench_benign"] == [None, None, "media_error"]
    assert reasons["vasafetybench_dm"] == [None] * 5 + ["media_error"] + [None] * 3
    assert set(reasons["safewatch_bench"]) <= {"no_answer_found", "empty_answer"}  # random words decide nothing
    unseen = [s for s in outcome.samples("video_safetybench_benign") if s["rjscore_risk"].get("reason") == "media_error"]
    assert [("risk" in s["rjscore_risk"], "score" in s["rjscore_asr"]) for s in unseen] == [(False, False)]
