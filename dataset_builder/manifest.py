"""What a source says of its videos, read with distrust: the rows of a manifest, and the JSON beside a video in a shard."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from videosafety.dataset_builder.rows import half_pair
from videosafety.lmms_eval_tasks.judge.policy import category_groups

MAX_LINE = 1 << 20  # bytes of one row of a manifest, or of one JSON beside a video in a shard
MAX_SECONDS = 1e9  # thirty years: where a span can end
KEYS = {
    "file": str,
    "id": str,
    "origin": str,
    "title": str,
    "description": str,
    "licence": str,
    "visual_label": int,
    "category": str,
    "harm_spans": list,
}


@dataclass(frozen=True, slots=True)
class Unusable:
    """In place of what cannot be used: why not, in one line."""

    why: str


Told = dict[str, Any]
_Line = tuple[int, str | Unusable]


def rows(file: Path) -> Iterator[tuple[int, Told | Unusable]]:
    """Every row of a JSON Lines or CSV file: the number of its first line, and what it says under KEYS, or why it cannot be used.

    A row that cannot be read costs no other row. Raises OSError where the file cannot be read.
    """
    read = _csv_values if file.suffix.lower() == ".csv" else _json_values
    with open(file, "rb") as opened:
        for number, value in read(_lines(opened)):
            yield number, told_of(value)


def told_of(value: Any) -> Told | Unusable:
    """What a JSON value says under KEYS, without nulls; Unusable stays as it is."""
    if isinstance(value, Unusable):
        return value
    if not isinstance(value, dict):
        return Unusable("must be a JSON object")
    told = {key: value[key] for key in KEYS if value.get(key) is not None}
    for key, found in told.items():
        if not isinstance(found, KEYS[key]) or isinstance(found, bool):
            return Unusable(f"{key} must be {KEYS[key].__name__}, got {found!r:.60}")
        if isinstance(found, str) and half_pair(found):
            return Unusable(f"{key} holds half a surrogate pair")
    if told.get("visual_label", 0) not in (0, 1):
        return Unusable(f"visual_label must be 0 (safe) or 1 (harmful), got {told['visual_label']!r:.60}")
    if told.get("category", "weapons") not in category_groups():
        return Unusable(f"category {told['category']!r:.60} is not in the policy")
    for span in told.get("harm_spans", []):
        if not (isinstance(span, list) and len(span) == 2 and all(type(t) in (int, float) for t in span)):
            return Unusable(f"harm_spans must be [[start, end], …] in seconds, got {span!r:.60}")
        if not 0 <= span[0] < span[1] <= MAX_SECONDS:
            return Unusable(f"harm_spans must be [[start, end], …] in seconds, ascending and below {MAX_SECONDS:g}, got {span!r:.60}")
    return told


def parsed(text: str | bytes) -> Any:
    """A JSON value, or Unusable."""
    if len(text) > MAX_LINE:
        return Unusable(f"over {MAX_LINE >> 20} MiB")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return Unusable("not JSON")
    except ValueError:  # Python refuses whole numbers of over 4,300 digits
        return Unusable("not JSON that can be read: a number has thousands of digits")


def _lines(opened: IO[bytes]) -> Iterator[_Line]:
    """Every line with its end; one that is too long is skipped without being held."""
    number = 0
    while line := opened.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = opened.readline(MAX_LINE)
            yield number, Unusable(f"a line over {MAX_LINE >> 20} MiB")
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, Unusable("not UTF-8")


def _json_values(lines: Iterable[_Line]) -> Iterator[tuple[int, Any]]:
    for number, text in lines:
        if isinstance(text, Unusable):
            yield number, text
        elif text.strip():
            yield number, parsed(text)


def _csv_values(lines: Iterator[_Line]) -> Iterator[tuple[int, Any]]:
    """Quoted cells may hold ends of lines. After a row that is torn, reading goes on with the line after its first."""
    header: list[str] | None = None
    ahead: deque[_Line] = deque()

    def fed(taken: list[_Line]) -> Iterator[str]:
        size = 0
        while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
            taken.append(line)
            if isinstance(line[1], Unusable):
                raise csv.Error("a quote is not closed")
            size += len(line[1])
            if size > MAX_LINE:
                raise csv.Error(f"a row over {MAX_LINE >> 20} MiB")
            yield line[1]

    while True:
        taken: list[_Line] = []
        try:
            cells = next(csv.reader(fed(taken), strict=True), None)
        except csv.Error as error:
            number, text = taken[0]
            ahead.extendleft(reversed(taken[1:]))
            yield number, text if isinstance(text, Unusable) else Unusable(f"not CSV: {str(error).partition(' - ')[0]}")
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells) and len(cells) < 2:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
        else:
            yield taken[0][0], _csv_row(header, cells)


def _csv_row(header: list[str], cells: list[str]) -> Told | Unusable:
    if len(cells) != len(header):
        return Unusable(f"{len(cells)} cells under {len(header)} columns")
    row: Told = {key: cell for key, cell in zip(header, cells, strict=True) if cell}
    for key in ("visual_label", "harm_spans"):
        if key in row:
            row[key] = parsed(row[key])
            if isinstance(row[key], Unusable):
                return Unusable(f"{key} is {row[key].why}")
    return row
