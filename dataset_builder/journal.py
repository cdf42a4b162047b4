"""What is done, on disk: finished bundles by phase and key, and every answer of a server. A process that is killed loses neither."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from videosafety.dataset_builder.rows import Bundle

# Bodies lie in the order in which they came; only the index of keys, which are random, is written here and there.
_TABLES = """
CREATE TABLE IF NOT EXISTS bundles (phase TEXT, key TEXT, body TEXT NOT NULL, UNIQUE (phase, key));
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL, model TEXT NOT NULL);
"""
_KEYS = 500  # of one SELECT: SQLite takes 999 variables at least


class Journal:
    """One SQLite file. What was `put` is on disk when the call returns. Threads may share one; one process writes.

    Methods raise sqlite3.Error where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # safe when the process dies; the last few may go when the machine does
        self._db.executescript(_TABLES)

    def put(self, phase: str, bundles: Iterable[Bundle]) -> None:
        """Keep finished bundles."""
        rows = [(phase, bundle.key, bundle.dumps()) for bundle in bundles]
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO bundles VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")

    def get(self, phase: str, keys: list[str]) -> Iterator[Bundle | None]:
        """The finished bundle of each key, in order; None where there is none."""
        for start in range(0, len(keys), _KEYS):
            part = keys[start : start + _KEYS]
            marks = ",".join("?" * len(part))
            with self._lock:
                found = dict(self._db.execute(f"SELECT key, body FROM bundles WHERE phase = ? AND key IN ({marks})", (phase, *part)))  # noqa: S608
            yield from (Bundle.loads(found[key]) if key in found else None for key in part)

    def final(self, phase: str, keys: list[str]) -> set[str]:
        """Those of the keys that need not be done again."""
        return {bundle.key for bundle in self.get(phase, keys) if bundle is not None and bundle.final}

    def answer(self, key: str) -> dict[str, Any] | None:
        """What a server said to this very request: kind (`ok` or `refused`), text, model."""
        with self._lock:
            row = self._db.execute("SELECT kind, text, model FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else {"kind": row[0], "text": json.loads(row[1]), "model": row[2]}

    def keep(self, key: str, kind: str, text: str, model: str) -> None:
        """Keep an answer. JSON in ASCII: any string comes back as it was."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?)", (key, kind, json.dumps(text), model))

    def close(self) -> None:
        with self._lock:
            self._db.close()
