"""Verdicts that arrive later: `process_results` hands the answer over and goes on; whoever reads the record waits for the verdict."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic

from .cache import Kept, judge_cache
from .redact import one_line
from .verdict import Grade, Grader, Item, Judge, Panel, Reason, Verdict, ungraded, unscored

# Rows at work at once. A judge that talks to a server bounds its calls lower; one that fills batches on a GPU wants rows to choose from.
WORKERS = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job(Generic[Kept]):
    """`kind`: what `judge` gives. `failed`: what stands for it where the judge broke."""

    judge: Any
    item: Item
    future: Future[Kept]
    kind: type[Kept]
    failed: Callable[[BaseException], Kept]


def _failed(judge: Judge | Grader, error: BaseException) -> Verdict:
    """A judge is anybody's code: whatever it raises is a failed verdict, never an error of the run and never a score."""
    return unscored(Reason.JUDGE_FAILED, judge=judge.id, detail=_words(error))


def _failed_grade(grader: Grader, error: BaseException) -> Grade:
    return ungraded(Reason.JUDGE_FAILED, judge=grader.id, detail=_words(error))


def _words(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")


class _Background:
    """One event loop in a daemon thread. Holds a row only until its verdict is there."""

    def __init__(self) -> None:
        self._waiting: deque[_Job[Any]] = deque()
        self._asked: dict[str, list[Future[Any]]] = {}  # key -> those who wait for its verdict
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._loop.run_forever, name="videosafety-judge", daemon=True)
        self.thread.start()

    def add(self, job: _Job[Any]) -> None:
        self._waiting.append(job)
        self._loop.call_soon_threadsafe(self._start_worker)

    def _start_worker(self) -> None:
        if self._waiting and len(self._tasks) < WORKERS:
            task = self._loop.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        while self._waiting:
            await self._answer(self._waiting.popleft())
            await asyncio.sleep(0)  # cached verdicts need no waiting: let those who wait for a server have their turn

    async def _answer(self, job: _Job[Any]) -> None:
        key = None
        try:
            # Reading a video for its hash takes time that the loop does not have.
            key = await asyncio.to_thread(job.judge.key, job.item) if job.item.media else job.judge.key(job.item)
            if key in self._asked:
                self._asked[key].append(job.future)
                return
            self._asked[key] = [job.future]
            verdict = _stored(key, job.kind)
            if verdict is None:
                verdict = await job.judge.judge(job.item)
                _store(key, verdict)
        except BaseException as error:  # not even SystemExit may end the thread: every other row would wait for ever
            verdict = job.failed(error)
        for future in [job.future] if key is None else self._asked.pop(key):
            future.set_result(verdict)


@lru_cache(maxsize=64)
def _warn(problem: str) -> None:
    """Once for each problem, not for each row."""
    _log.warning("videosafety: verdicts are not cached, a later run will ask for them again: %s", problem)


def _stored(key: str, kind: type[Kept]) -> Kept | None:
    try:
        return judge_cache().get(key, kind)
    except (sqlite3.Error, OSError) as error:
        _warn(str(error))
        return None


def _store(key: str, verdict: Verdict | Grade) -> None:
    try:
        judge_cache().put(key, verdict)
    except (sqlite3.Error, OSError) as error:
        _warn(str(error))


_background: _Background | None = None
_starting = threading.Lock()


def _here() -> _Background:
    global _background
    with _starting:
        if _background is None:
            _background = _Background()
        return _background


def _after_fork() -> None:
    """Threads do not cross a fork: a child starts its own."""
    global _background, _starting
    _background, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def submit(judge: Judge, item: Item) -> Future[Verdict]:
    """Have an answer judged. The future never holds an exception: a judge that raises gives unscored(judge_failed).

    A local judge is asked on the spot. A remote one is asked in the background, at once for all callers that ask the same, and only
    where the cache has no verdict yet. A panel's members are asked so one by one, and the panel decides when all have answered.
    """
    if isinstance(judge, Panel):
        return _submit_panel(judge, item)
    future: Future[Verdict] = Future()
    _hold(future)
    if callable(judge):
        try:
            future.set_result(judge(item))
        except Exception as error:
            future.set_result(_failed(judge, error))
    else:
        _here().add(_Job(judge, item, future, Verdict, partial(_failed, judge)))
    return future


def _submit_panel(panel: Panel, item: Item) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    _hold(future)
    if (early := panel.before(item)) is not None:
        future.set_result(early)
        return future
    votes = [submit(member, item) for member in panel.judges]
    left = itertools.count(len(votes) - 1, -1)  # members answer in several threads, and one step of a counter is one for all of them

    def arrived(_: Future[Verdict]) -> None:
        if next(left) == 0:
            try:
                future.set_result(panel.decide([vote.result() for vote in votes]))
            except Exception as error:  # members are anybody's code, and who waits here would wait for ever
                future.set_result(_failed(panel, error))

    for vote in votes:
        vote.add_done_callback(arrived)
    return future


def submit_grade(grader: Grader, item: Item) -> Future[Grade]:
    """Have an answer graded, as `submit` has one judged by a remote judge."""
    future: Future[Grade] = Future()
    _hold(future)
    _here().add(_Job(grader, item, future, Grade, partial(_failed_grade, grader)))
    return future


def _hold(future: Future[Any]) -> None:
    future.set_running_or_notify_cancel()  # nobody can cancel what others may wait for


class Pending(dict):
    """A metric record whose verdict arrives later. Whatever reads it, pickles it or writes it as JSON waits for the verdict first.

    base: what is known already, not empty (json takes an empty dict's word for it). future: as from `submit` or `submit_grade`. fields:
    what the verdict or grade adds to the record. Threads may share one; the future is let go as soon as it is done.
    """

    __slots__ = ("_fields", "_future", "_verdict")

    def __init__(self, base: Mapping[str, Any], future: Future[Kept], fields: Callable[[Kept], Mapping[str, Any]]) -> None:
        if not base:
            raise ValueError("a pending record needs at least one field that is known already")
        super().__init__(base)
        self._fields: Callable[[Any], Mapping[str, Any]] | None = fields
        self._future: Future[Any] | None = future
        self._verdict: Verdict | Grade | None = None
        future.add_done_callback(self._arrived)

    def _arrived(self, future: Future[Any]) -> None:
        # Not merged here: another thread may be reading. A future is several times the size of a verdict, so only this is kept.
        if self._fields is not None:
            self._verdict = future.result()
            self._future = None

    def resolve(self) -> Pending:
        """Wait for the verdict and add its fields; returns the record itself."""
        future = self._future
        if future is not None:
            future.result()
        with _merging:
            fields, verdict = self._fields, self._verdict
            if fields is not None:
                super().update(fields(verdict if verdict is not None else future.result()))  # type: ignore[union-attr]
                self._fields = self._verdict = self._future = None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.resolve().items()),)


_merging = threading.RLock()


def _after_resolve(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def read(self: Pending, *args: Any) -> Any:
        return method(self.resolve(), *args)

    read.__name__ = name
    return read


for _name in (
    *("__getitem__", "__contains__", "__iter__", "__len__", "__eq__", "__ne__", "__repr__", "__or__", "__ror__", "__reversed__"),
    *("__delitem__", "get", "items", "keys", "values", "copy", "pop", "popitem", "setdefault"),
):
    setattr(Pending, _name, _after_resolve(_name))
