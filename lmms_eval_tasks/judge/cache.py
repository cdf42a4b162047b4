"""Verdicts on disk: what was judged once is never asked again. Failures are not kept. Many processes may share the file."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from videosafety.lmms_eval_tasks.data import cache_dir

from .verdict import Grade, Verdict

BUSY_SECONDS = 30.0
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, judge TEXT NOT NULL, verdict TEXT NOT NULL, made REAL NOT NULL) WITHOUT ROWID
"""
Kept = TypeVar("Kept", Verdict, Grade)
_CHUNK = 2_000  # rows removed at once: other processes may write in between


def dumps(verdict: Verdict | Grade) -> str:
    """A verdict or grade as JSON, in ASCII, so that any string comes back as it was; `loads` gives the same again."""
    return json.dumps({name: value for name, value in asdict(verdict).items() if value not in (None, "")})


def loads(text: str, kind: type[Kept]) -> Kept:
    """The verdict or grade that `dumps` wrote.

    Raises:
        ValueError, TypeError: `text` is nothing of the kind.
    """
    return kind(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored of one judge: number of verdicts, their size in bytes, and when the first and the last were given (Unix time)."""

    judge: str
    n: int
    bytes: int
    first: float
    last: float


class JudgeCache:
    """Verdicts by key. Every verdict is on disk when `put` returns: a process that is killed loses none.

    Threads may share one. Methods raise sqlite3.Error or OSError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that make the same file at the same moment would see each other's half-made one.
        with FileLock(f"{path}.lock"):
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # safe when the process dies; the last few may go when the machine does
            self._db.execute(_TABLE)

    def get(self, key: str, kind: type[Kept]) -> Kept | None:
        """The verdict or grade stored under `key`, None where there is none that can be read."""
        with self._lock:
            row = self._db.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return loads(row[0], kind)
        except (ValueError, TypeError):
            return None  # written by a version with other fields: ask again and replace it

    def put(self, key: str, verdict: Verdict | Grade) -> None:
        """Store a verdict or grade. An unscored one is not stored: the next run asks again."""
        if not verdict.scored:
            return
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", (key, verdict.judge, dumps(verdict), time.time()))

    def list(self) -> list[Entry]:
        """What is stored, by judge, in the order of their names."""
        sums = "judge, count(*), sum(length(key) + length(judge) + length(verdict) + 8), min(made), max(made)"
        with self._lock:
            rows = self._db.execute(f"SELECT {sums} FROM verdicts GROUP BY judge ORDER BY judge").fetchall()  # noqa: S608
        return [Entry(*row) for row in rows]

    def prune(self, *, older_than_days: float | None = None, judge: str | None = None) -> int:
        """Remove the verdicts that meet all conditions given, and give their space back.

        Returns:
            How many were removed.

        Raises:
            ValueError: no condition, or a negative age.
        """
        if older_than_days is None and judge is None:
            raise ValueError("say which verdicts to remove: older_than_days, judge, or both")
        if older_than_days is not None and not older_than_days >= 0:
            raise ValueError(f"older_than_days must be 0 or more, got {older_than_days}")
        before = time.time() - older_than_days * 86_400 if older_than_days is not None else float("inf")
        chosen = "SELECT key FROM verdicts WHERE made <= ? AND (? IS NULL OR judge = ?) LIMIT ?"
        removed = 0
        while True:
            with self._lock:
                done = self._db.execute(f"DELETE FROM verdicts WHERE key IN ({chosen})", (before, judge, judge, _CHUNK)).rowcount  # noqa: S608
            removed += done
            if done < _CHUNK:
                break
        with self._lock:
            # A page a step: `execute` takes one step, `executescript` all.
            self._db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def close(self) -> None:
        with self._lock:
            self._db.close()


_open: dict[Path, JudgeCache] = {}
_inherited: list[dict[Path, JudgeCache]] = []
_opening = threading.Lock()


def cache_path() -> Path:
    """Where the verdicts are: judge.sqlite in the cache folder."""
    return cache_dir() / "judge.sqlite"


def judge_cache() -> JudgeCache:
    """The cache of this process at `cache_path()`, opened once."""
    path = cache_path()
    with _opening:
        if path not in _open:
            _open[path] = JudgeCache(path)
        return _open[path]


def _after_fork() -> None:
    """A database connection must not cross a fork, and not be closed on the other side either: it is left alone."""
    global _opening
    _inherited.append(dict(_open))
    _open.clear()
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
