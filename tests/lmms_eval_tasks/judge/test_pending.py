"""Verdicts that arrive later: nothing blocks, nothing is asked twice, nothing is lost, and no failure becomes a score."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from fault_server import fault_server
from videosafety.lmms_eval_tasks.judge import pending as pending_module
from videosafety.lmms_eval_tasks.judge.cache import judge_cache
from videosafety.lmms_eval_tasks.judge.llm import LlmJudge
from videosafety.lmms_eval_tasks.judge.pending import Pending, submit
from videosafety.lmms_eval_tasks.judge.verdict import Item, Label, Reason, Verdict


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))


class Scripted:
    """A remote judge that does what its answer says."""

    id = "scripted@1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def key(self, item: Item) -> str:
        if item.answer == "bad key":
            raise RuntimeError("no key")
        return f"{item.query} {item.answer}"

    async def judge(self, item: Item) -> Verdict:
        self.asked.append(item.answer)
        if item.answer.startswith("wait"):
            await asyncio.sleep(0.2)
        if item.answer.startswith("raise"):
            raise {"raise": RuntimeError, "raise exit": SystemExit, "raise cancel": asyncio.CancelledError}[item.answer](
                "sk-abcdefgh1234 went wrong\n"
            )
        return Verdict(Label.SAFE, judge=self.id, raw=item.answer)

    async def close(self) -> None:
        return None


def late(seconds: float = 0.1) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    threading.Timer(seconds, future.set_result, [Verdict(Label.SAFE)]).start()
    return future


def record(seconds: float = 0.1) -> Pending:
    return Pending({"id": 1}, late(seconds=seconds), lambda verdict: {"score": float(verdict.label is Label.SAFE)})


WHOLE = {"id": 1, "score": 1.0}


@pytest.mark.parametrize(
    "read",
    [
        lambda r: r.resolve(),
        dict,
        lambda r: {**r},
        lambda r: dict(r.items()),
        lambda r: json.loads(json.dumps(r)),
        lambda r: json.loads(json.dumps(r, indent=1, sort_keys=True)),
        lambda r: json.loads(json.dumps({"a": [r]}))["a"][0],
        lambda r: pickle.loads(pickle.dumps(r)),
        copy.copy,
        copy.deepcopy,
        lambda r: r.copy(),
        lambda r: r | {},
        lambda r: {} | r,
        lambda r: {key: r[key] for key in r},
        lambda r: dict(zip(r.keys(), r.values(), strict=True)),
        lambda r: eval(repr(r)),
    ],
)
def test_whatever_reads_a_record_waits_for_the_verdict(read: Callable[[Pending], dict]) -> None:
    assert read(record()) == WHOLE


def test_single_reads_wait_too() -> None:
    assert record()["score"] == 1.0
    assert record().get("score") == 1.0
    assert "score" in record()
    assert len(record()) == 2
    assert record() == WHOLE
    assert "score" in list(record())
    assert type(pickle.loads(pickle.dumps(record()))) is dict


def test_a_record_needs_a_base() -> None:
    with pytest.raises(ValueError, match="at least one field"):
        Pending({}, late(), lambda verdict: {})


def test_making_a_record_does_not_wait_and_many_threads_may_read_it() -> None:
    start = time.monotonic()
    shared = record(0.3)
    assert time.monotonic() - start < 0.2
    with ThreadPoolExecutor(16) as threads:
        assert all(found == WHOLE for found in threads.map(lambda _: dict(shared.resolve()), range(64)))


def test_the_future_is_let_go() -> None:
    shared = record(0.0)
    shared.resolve()
    assert (shared._future, shared._fields, shared._verdict) == (None, None, None)


# --- submit -----------------------------------------------------------------------------------------------------------------------


class Local:
    id = "local@1"

    def __call__(self, item: Item) -> Verdict:
        if item.answer == "raise":
            raise RuntimeError("went wrong")
        return Verdict(Label.SAFE, judge=self.id)


def test_a_local_judge_is_done_at_once_and_never_raises() -> None:
    done = submit(Local(), Item("q", "a"))
    assert done.done()
    assert done.result().label is Label.SAFE
    assert submit(Local(), Item("q", "raise")).result().reason is Reason.JUDGE_FAILED
    assert judge_cache().list() == []


@pytest.mark.parametrize("answer", ["raise", "raise exit", "raise cancel", "bad key"])
def test_whatever_a_judge_raises_is_an_unscored_verdict(answer: str) -> None:
    judge = Scripted()
    verdict = submit(judge, Item("q", answer)).result(5)
    assert verdict.reason is Reason.JUDGE_FAILED
    assert verdict.judge == judge.id
    assert "sk-" not in verdict.detail
    assert "\n" not in verdict.detail
    assert submit(judge, Item("q", "after")).result(5).scored  # the thread lives
    assert judge_cache().list()[0].n == 1


def test_the_same_question_in_flight_is_asked_once() -> None:
    judge = Scripted()
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(lambda _: submit(judge, Item("q", "wait")), range(200)))
    assert {future.result(5).raw for future in futures} == {"wait"}
    assert judge.asked == ["wait"]


def test_a_failure_in_flight_is_everybodys_and_the_next_asks_again() -> None:
    judge = Scripted()
    futures = [submit(judge, Item("q", "raise")) for _ in range(3)]
    assert all(future.result(5).reason is Reason.JUDGE_FAILED for future in futures)
    before = len(judge.asked)
    submit(judge, Item("q", "raise")).result(5)
    assert len(judge.asked) == before + 1


def test_what_was_judged_is_not_asked_again() -> None:
    judge = Scripted()
    first = [submit(judge, Item("q", str(n))) for n in range(500)]
    assert [future.result(30).raw for future in first] == [str(n) for n in range(500)]
    again = [submit(judge, Item("q", str(n))).result(5) for n in range(500)]
    assert again == [future.result() for future in first]
    assert len(judge.asked) == 500


def test_more_rows_than_places_and_nothing_is_kept() -> None:
    judge = Scripted()
    futures = [submit(judge, Item("q", f"wait {n}")) for n in range(3 * pending_module.WORKERS)]
    assert all(future.result(30).scored for future in futures)
    background = pending_module._background
    assert background is not None
    time.sleep(0.1)
    assert not background._waiting
    assert not background._asked
    assert not background._tasks
    assert sum(thread.name == "videosafety-judge" for thread in threading.enumerate()) == 1


@pytest.mark.parametrize("damage", ["file", "folder"])
def test_without_a_cache_verdicts_still_come(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    path.mkdir() if damage == "folder" else path.write_bytes(b"this is no database" * 100)
    assert submit(Scripted(), Item("q", "a")).result(5).scored


def test_a_fork_has_a_thread_of_its_own() -> None:
    judge = Scripted()
    assert submit(judge, Item("q", "parent")).result(5).scored
    child = os.fork()
    if child == 0:
        os._exit(0 if submit(judge, Item("q", "child")).result(10).scored else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- a run with faults ------------------------------------------------------------------------------------------------------------

BAD = ["429", "500", "hang", "cut", "garbage", "filter", "filter_finish", "null", "empty", "mixed", "refuse", "cut_body"]
PASSING = ["429x1", "500x1", "cutx1", "500x2"]


@pytest.mark.parametrize("together", [False, True], ids=["spread", "at the start"])
def test_with_30_percent_faults_the_rest_is_right_and_nothing_is_lost(together: bool) -> None:
    n, bad, answers = 400, 0, []
    for row in range(n):
        faulty = row < 120 if together else row % 10 in (1, 4, 8)
        fault = f" fault={BAD[bad % len(BAD)]}" if faulty else f" fault={PASSING[row % 4]}" if row % 7 == 0 else ""
        bad += faulty
        answers.append(f"{row} {'HARM' if row % 3 == 0 else 'No'}{fault}")
    assert bad == 120
    with fault_server() as server:
        judge = LlmJudge.local(f"{server.url}#m", timeout=0.5)
        judge._client.backoff = 0.01
        records = [
            Pending({"row": row}, submit(judge, Item("q", answer)), lambda verdict: {"verdict": verdict})
            for row, answer in enumerate(answers)
        ]
        verdicts = [one.resolve()["verdict"] for one in records]
        for answer, verdict in zip(answers, verdicts, strict=True):
            if any(answer.endswith(f"fault={name}") for name in BAD):
                assert verdict.reason in (Reason.JUDGE_FAILED, Reason.JUDGE_REFUSED, Reason.JUDGE_UNPARSABLE), answer
                assert verdict.detail
            else:
                assert verdict.label is (Label.UNSAFE if "HARM" in answer else Label.SAFE), (answer, verdict)
        assert set(server.answers) == set(answers)
        assert judge_cache().list()[0].n == n - bad


RUN = """
import sys
from videosafety.lmms_eval_tasks.judge.llm import LlmJudge
from videosafety.lmms_eval_tasks.judge.pending import submit
from videosafety.lmms_eval_tasks.judge.verdict import Item
judge = LlmJudge.local(sys.argv[1] + "#m")
futures = [submit(judge, Item("q", f"answer {n}")) for n in range(300)]
print("started", flush=True)
assert all(future.result().scored for future in futures)
"""


def test_a_run_that_is_killed_asks_nothing_again_that_was_judged(tmp_path: Path) -> None:
    with fault_server(delay=0.1) as server:
        first = subprocess.Popen([sys.executable, "-c", RUN, server.url], stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while server.calls < 120 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(0.3)
        judged = judge_cache().list()[0].n
        assert 0 < judged < 300
        asked = dict(server.answers)
        assert len(asked) - judged <= 64  # those that were on their way when it died
        subprocess.run([sys.executable, "-c", RUN, server.url], check=True, timeout=60)
        assert judge_cache().list()[0].n == 300
        assert sum(server.answers.values()) == sum(asked.values()) + 300 - judged
        assert max(server.answers.values()) <= 2
        before = server.calls
        subprocess.run([sys.executable, "-c", RUN, server.url], check=True, timeout=60)
        assert server.calls == before
