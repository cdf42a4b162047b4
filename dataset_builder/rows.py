"""What goes through the stages: rows (JSON objects), bundles of the rows that one input became, and refusals with their reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from videosafety.lmms_eval_tasks.judge.redact import one_line

_HALF = re.compile("[\ud800-\udfff]")
Row = dict[str, Any]  # JSON-serialisable; `id` and `provenance` are always there, every stage adds keys of its own


class Rejected(Exception):
    """A row that goes no further. The message says why in one line; `transient`: it may pass another time (a server was down)."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(one_line(reason))
        self.transient = transient


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row, or a part of one (`what`, such as a cell or a language), that was left out, and by which stage."""

    id: str
    reason: str
    stage: str = ""
    what: str = ""
    transient: bool = False
    row: Row | None = None  # kept where a reviewer has to see it


@dataclass(slots=True)
class Bundle:
    """All that one input of a phase became so far. Done when every stage has seen it: it is journalled whole, under `key`."""

    key: str
    rows: list[Row]
    rejected: list[Rejection] = field(default_factory=list)

    @property
    def final(self) -> bool:
        """Whether the next run need not try it again."""
        return not any(rejection.transient for rejection in self.rejected)

    def dumps(self) -> str:
        return json.dumps({"key": self.key, "rows": self.rows, "rejected": [asdict(r) for r in self.rejected]}, ensure_ascii=True)

    @classmethod
    def loads(cls, text: str) -> Bundle:
        body = json.loads(text)
        return cls(body["key"], body["rows"], [Rejection(**r) for r in body["rejected"]])


Outcome = Row | Rejection
Stage = Callable[[Row], Iterable[Outcome]]  # one row in; the rows it becomes, and what of it was left out


def through(bundle: Bundle, name: str, stage: Stage) -> Bundle:
    """The bundle after one stage."""
    rows: list[Row] = []
    rejected = list(bundle.rejected)
    for row in bundle.rows:
        try:
            for outcome in stage(row):
                if isinstance(outcome, Rejection):
                    rejected.append(Rejection(outcome.id, outcome.reason, name, outcome.what, outcome.transient, outcome.row))
                else:
                    rows.append(outcome)
        except Rejected as error:
            rejected.append(Rejection(row["id"], str(error), name, transient=error.transient))
    return Bundle(bundle.key, rows, rejected)


def digest(*parts: Any, length: int = 16) -> str:
    """The first `length` hex digits of a SHA-256 over JSON-serialisable parts: an identity that depends on nothing else."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def number(*parts: Any) -> int:
    """A whole number in [0, 2**64) drawn from the parts: chance that comes out the same in every run and on every machine."""
    return int(digest(*parts), 16)


def half_pair(text: str) -> bool:
    """Whether a string holds half a surrogate pair, which no file in UTF-8 can: a name that is no UTF-8, or a careless JSON escape."""
    return bool(_HALF.search(text))


def said(row: Row, **facts: Any) -> Row:
    """The row with more provenance."""
    return row | {"provenance": row["provenance"] | facts}
