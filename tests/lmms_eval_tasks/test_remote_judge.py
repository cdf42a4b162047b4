"""A judge on a server, through the real command line: concurrent, on one rank and on two, cached, and null where it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import Outcome, write_set, write_video
from fault_server import Faults, fault_server
from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.judge import get_judge

Run = Callable[..., Outcome]
ARGS = ("--model", "videosafety_r1", "--batch_size", "4", "--gen_kwargs", "max_new_tokens=4", "--tasks", "vsb_hh,vsb_safeq")


@pytest.fixture
def server() -> Iterator[Faults]:
    with fault_server(delay=0.02) as faults:
        yield faults


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "vsb"
    folder.mkdir(parents=True)
    clips = [write_video(folder / f"{n}.mp4", frames=8 * (n + 1)).name for n in range(3)]
    rows = [
        {"id": f"{cell}-{n}", "cell": cell, "query": f"{cell} {n}?", "video": clips[n % 3], "category": "weapons"}
        for cell in ("hh", "safeq")
        for n in range(6)
    ]
    return write_set(folder, rows).parent


@pytest.mark.slow  # `make test-slow`
def test_verdicts_arrive_on_one_rank_and_on_two_and_are_cached(
    lmms_eval: Run, server: Faults, data: Path, tiny: Path, tmp_path: Path
) -> None:
    env = {
        "VIDEOSAFETY_JUDGE": f"local:{server.url}#fault",
        "VIDEOSAFETY_DATA_DIR": str(data),
        "VIDEOSAFETY_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    one = lmms_eval(*ARGS, "--model_args", f"pretrained={tiny}", out="one", **env)
    asked = server.calls
    answers = {(s["dsr"]["id"], s["filtered_resps"]) for s in one.samples("vsb_hh")}
    assert 0 < asked <= 12
    front = ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "lmms_eval")
    two = lmms_eval(*ARGS, "--model_args", f"pretrained={tiny}", front=front, out="two", **env)
    assert server.calls == asked, "the second run asks nothing that the first one has asked"
    for outcome in (one, two):
        figures = outcome.results()["results"]
        assert figures["vsb_hh"]["n_scored,none"] == figures["vsb_safeq"]["n_scored,none"] == 6
        assert figures["vsb_hh"]["dsr,none"] == 1.0  # the server calls unsafe what has the word HARM in it
        assert figures["vsb_hh"]["dsr_stderr_clt,none"] == 0.0
        records = [s["dsr"] for s in outcome.samples("vsb_hh")]
        assert {(r["id"], s["filtered_resps"]) for r, s in zip(records, outcome.samples("vsb_hh"), strict=True)} == answers
        assert {r["judge"].split("@")[0] for r in records} == {f"local:{server.url}#fault"}
        assert all(r["verdict"] == "safe" and r["score"] == 1.0 for r in records)
        assert outcome.results()["configs"]["vsb_hh"]["metadata"]["run"]["judge"]["spec"] == env["VIDEOSAFETY_JUDGE"]


def test_a_judge_that_refuses_gives_null(server: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    server.always = "filter"
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", f"local:{server.url}#fault")
    records = [metrics.process_harmful({"id": str(n), "query": "?", "video_id": str(n)}, [f"answer {n}"]) for n in range(5)]
    assert metrics.share([r["dsr"] for r in records]) is None
    assert metrics.share([r["unscored"] for r in records]) == 1.0
    assert metrics.n_scored([r["n_scored"] for r in records]) == 0
    assert {r["dsr"]["reason"] for r in records} == {"judge_refused"}
    assert not any("score" in r["dsr"] for r in records)


def test_a_missing_client_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    for name in ("client", "llm"):
        monkeypatch.delitem(sys.modules, f"videosafety.lmms_eval_tasks.judge.{name}", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'videosafety\[judge\]'"):
        get_judge("local:http://127.0.0.1:9/v1#never-asked-before")


def test_the_results_of_a_panel_say_how_far_its_members_agree(lmms_eval: Run, data: Path, tiny: Path, tmp_path: Path) -> None:
    env = {
        "VIDEOSAFETY_JUDGE": "panel:refusal+keyword:xstest",
        "VIDEOSAFETY_DATA_DIR": str(data),
        "VIDEOSAFETY_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    outcome = lmms_eval(*ARGS, "--model_args", f"pretrained={tiny}", out="panel", **env)
    for task in ("vsb_hh", "vsb_safeq"):
        found = outcome.results()["results"][task]["panel_agreement,none"]
        assert found["n"] == 6
        assert list(found["kappa"]) == ["refusal@4 / keyword:xstest@1"]
