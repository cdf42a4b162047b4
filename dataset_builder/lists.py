"""Ordered lists of rows on disk, made anew by each run: what has to be gone through as a whole never lies in memory as a whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from videosafety.dataset_builder.rows import Row

_TABLES = """
DROP TABLE IF EXISTS lists; DROP TABLE IF EXISTS final;
CREATE TABLE lists (name TEXT, seq INTEGER, body TEXT NOT NULL, PRIMARY KEY (name, seq)) WITHOUT ROWID;
CREATE TABLE final (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, split TEXT, cell TEXT, category INTEGER, language INTEGER, body TEXT NOT NULL);
"""
# English first, then each language; within it one row of every category in turn, so that any --limit sees all kinds.
_ORDER = """
SELECT f.body FROM final f JOIN (
  SELECT seq, row_number() OVER (PARTITION BY cell, category, language ORDER BY seq) AS n FROM final WHERE split = ?
) r USING (seq) ORDER BY f.language, r.n, f.category, f.cell, f.seq
"""
_AT_ONCE = 500


class Lists:
    """A SQLite file that is emptied when it is opened. For one thread of one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")  # a list that a crash damages is made anew
        self._db.execute("PRAGMA temp_store = FILE")
        self._db.executescript(_TABLES)

    def keep(self, name: str, rows: Iterable[Row]) -> int:
        """Write a list; how many rows it has."""
        count = 0

        def numbered() -> Iterator[tuple[str, int, str]]:
            nonlocal count
            for row in rows:
                yield name, count, json.dumps(row)
                count += 1

        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO lists VALUES (?, ?, ?)", numbered())
        self._db.execute("COMMIT")
        return count

    def append(self, name: str, row: Row) -> None:
        """Add one row to a list, also while others are read or written."""
        query = "INSERT INTO lists SELECT ?, coalesce(max(seq), -1) + 1, ? FROM lists WHERE name = ?"
        self._db.execute(query, (name, json.dumps(row), name))

    def read(self, name: str) -> Iterator[Row]:
        """The rows of a list, in order; other lists may be written meanwhile."""
        at = 0
        while True:
            query = "SELECT body FROM lists WHERE name = ? AND seq >= ? ORDER BY seq LIMIT ?"
            with closing(self._db.execute(query, (name, at, _AT_ONCE))) as found:
                bodies = found.fetchall()
            yield from (json.loads(body) for (body,) in bodies)
            at += len(bodies)
            if len(bodies) < _AT_ONCE:
                return

    def add_final(self, rows: Iterable[tuple[Row, int, int]]) -> None:
        """Rows of the finished set, each with the ranks of its category and language. Raises sqlite3.IntegrityError for an id twice."""
        values = ((row["id"], row["split"], row["cell"], category, language, json.dumps(row)) for row, category, language in rows)
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO final (id, split, cell, category, language, body) VALUES (?, ?, ?, ?, ?, ?)", values)
        self._db.execute("COMMIT")

    def final(self, split: str) -> Iterator[Row]:
        """The rows of a split, in the order in which they are written."""
        with closing(self._db.execute(_ORDER, (split,))) as found:
            for (body,) in found:
                yield json.loads(body)

    def close(self) -> None:
        self._db.close()


def dump_line(value: Any) -> str:
    """One line of JSON Lines: no line separator of any kind stands in it."""
    return json.dumps(value, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") + "\n"
