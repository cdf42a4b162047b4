"""A safety set as it is published: VSB-Open, or a folder of the user's own, read and checked as the tasks read it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import av
import yaml
from huggingface_hub.repocard import metadata_load

from videosafety.hub_cards.check import secrets
from videosafety.hub_cards.upload import PublishError
from videosafety.lmms_eval_tasks.catalog import catalog
from videosafety.lmms_eval_tasks.data import MissingData, read_rows
from videosafety.lmms_eval_tasks.frames import MediaError
from videosafety.lmms_eval_tasks.video import OPEN_OPTIONS, checked_file, read_timeline
from videosafety.lmms_eval_tasks.vsb import dataset as vsb

CELLS = {
    "hh": "harmful video, harmful query",
    "sh": "safe video, harmful query",
    "hs": "harmful video, harmless words",
    "safeq": "safe video, safe look-alike query",
}
SPLIT = re.compile(r"\w+(\.\w+)*")  # what `datasets` takes as the name of a split
HEAD = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)  # the metadata at the top of a README
KEEP = (str, int, float, bool, list)  # kinds of values that become a column


@dataclass(frozen=True, slots=True)
class Clip:
    """One video file. Length, size and rate are None where its header does not say."""

    path: Path
    sha256: str
    bytes: int
    seconds: float | None
    width: int
    height: int
    fps: float | None


@dataclass(frozen=True)
class SafetySet:
    """Rows by cell, in the order in which they are evaluated. A row's `video` is an absolute path; rows without one are text only.

    `hash` identifies VSB-Open's items; of other sets it is made of rows and clips. `about` is Markdown, from the set's own README.
    """

    name: str
    title: str
    version: str | None
    licence: str
    rows: dict[str, list[dict[str, Any]]]
    about: str
    own: bool  # VSB-Open

    @property
    def all_rows(self) -> list[dict[str, Any]]:
        return [row for rows in self.rows.values() for row in rows]

    @property
    def harmful(self) -> bool:
        """Whether any row is harmful, or not known to be harmless."""
        return any(harmful(row) for row in self.all_rows)

    @cached_property
    def clips(self) -> dict[str, Clip]:
        """Every video once, by its path. Raises PublishError where one is missing or is no video."""
        return {path: read_clip(row) for row in self.all_rows if (path := row.get("video"))}

    @cached_property
    def hash(self) -> str:
        """16 hex digits. Of all cells of VSB-Open its own; else of these rows and clips."""
        if self.own:
            return vsb.data_hash()
        plain = [row | {"video": self.clips[row["video"]].sha256} if row.get("video") else row for row in self.all_rows]
        return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What videosafety.json in the repository says: enough to tell one state of the set from another."""
        cells = {cell: len(rows) for cell, rows in self.rows.items()}
        facts = {"name": self.title, "version": self.version, "hash": self.hash, "cells": cells, "licence": self.licence}
        return facts | {"made_by": f"videosafety {version('videosafety')}"}


def harmful(row: dict[str, Any]) -> bool:
    """Whether a row's query or video is harmful. What nobody labelled is taken as harmful."""
    return row.get("textual_label") != 0 or ("video" in row and row.get("visual_label") != 0)


def load_set(name: str, cells: Collection[str] = (), licence: str | None = None, title: str | None = None) -> SafetySet:
    """The set `name`: `vsb`, or a folder with rows.jsonl and the videos it names.

    Args:
        cells: only these; all where empty.
        licence: of a folder, as the Hub writes it, such as cc-by-4.0.
        title: of a folder; else `pretty_name` of its README, else the folder's name.

    Raises:
        PublishError: no such set, somebody else's set, a row, video or cell that is not as it must be, or no licence.
    """
    if name == "vsb" and not Path(name).is_dir():
        if licence or title:
            raise PublishError("vsb has its own title and licence (cc-by-4.0): leave --title and --license out")
        chosen = _chosen(list(vsb.CELLS), cells, "vsb")
        rows = {cell: vsb.rows(cell) for cell in chosen}
        try:
            paths = vsb.ensure_videos(row["video_id"] for found in rows.values() for row in found)
        except RuntimeError as error:  # other frames than those of the published checksums
            raise PublishError(str(error)) from error
        shown = {cell: [row | {"video": str(paths[row["video_id"]])} for row in found] for cell, found in rows.items()}
        about = own_words(Path(vsb.__file__).with_name("README.md"))
        return SafetySet("vsb", vsb.NAME, vsb.VERSION, "cc-by-4.0", shown, about, own=True)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name in catalog():
            raise PublishError(
                f"{name} is somebody else's set ({catalog()[name].source.page or 'unreleased'}): name a folder of your own, or vsb"
            )
        raise PublishError(f"{name}: no such folder, and no set of ours; give vsb or a folder with rows.jsonl")
    if not licence:
        raise PublishError(f"{folder}: say under which licence it may be used: --license cc-by-4.0, for example")
    try:
        found = read_rows(folder)
    except MissingData as error:
        raise PublishError(str(error).removeprefix("videosafety: ")) from error
    if not found:
        raise PublishError(f"{folder / 'rows.jsonl'} has no rows")
    _check_keys(found, folder)
    texts = {name: folder / name for name in ("rows.jsonl", "README.md") if (folder / name).is_file()}
    if leaked := secrets(texts):
        raise PublishError(f"{folder}: {leaked[0]}")
    by_cell = {cell: [row for row in found if row["cell"] == cell] for cell in dict.fromkeys(row["cell"] for row in found)}
    chosen = _chosen(list(by_cell), cells, str(folder))
    readme = folder / "README.md"
    about = own_words(readme) if readme.is_file() else ""
    title = title or _pretty_name(readme) or folder.resolve().name
    return SafetySet(folder.resolve().name, title, None, licence, {c: by_cell[c] for c in chosen}, about, own=False)


def _pretty_name(readme: Path) -> str | None:
    """The title in a README's metadata. Raises PublishError where they cannot be read: the Hub would not take them either."""
    try:
        known = metadata_load(readme) if readme.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise PublishError(f"{readme}: its metadata are no YAML mapping ({' '.join(str(error).split())})") from error
    named = (known or {}).get("pretty_name")
    return named if isinstance(named, str) and named.strip() else None


def _chosen(there: list[str], wanted: Collection[str], where: str) -> list[str]:
    if lost := [cell for cell in wanted if cell not in there]:
        raise PublishError(f"{where} has no cell {', '.join(lost)}; it has {', '.join(there)}")
    if odd := [cell for cell in there if not SPLIT.fullmatch(cell)]:
        raise PublishError(f"{where}: the cell {odd[0]!r} cannot name a split: use letters, digits and underscores")
    return [cell for cell in there if not wanted or cell in wanted]


def _check_keys(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Raises PublishError where a column would hold values of several kinds, or of one that has no column."""
    kinds: dict[str, type] = {}
    for row in rows:
        for key, value in row.items():
            where = f"{folder / 'rows.jsonl'}, row {row['id']}: {key}"
            if value is None:
                continue
            if not isinstance(value, KEEP):
                raise PublishError(
                    f"{where} is {type(value).__name__}; a column holds text, numbers or lists: spell it out, or leave it out"
                )
            if kinds.setdefault(key, type(value)) is not type(value):
                raise PublishError(f"{where} is {type(value).__name__}, elsewhere {kinds[key].__name__}: a column holds one kind")


def own_words(readme: Path) -> str:
    """A README without its metadata, its headings one level lower, and its first heading left out: it goes into ours."""
    text = HEAD.sub("", readme.read_text(encoding="utf-8").replace("\r\n", "\n"))
    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        if line.startswith("# ") and not fenced:
            continue
        lines.append(f"#{line}" if re.match(r"#+ ", line) and not fenced else line)
    # links to files beside it lead nowhere on the Hub: their words stay
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", "\n".join(lines)).strip()


def read_clip(row: dict[str, Any]) -> Clip:
    """A row's video. Raises PublishError, naming the row, where it is missing or is no video that evaluation would take."""
    path = Path(row["video"])
    if not path.exists():
        raise PublishError(f"row {row['id']}: {path} is not there; add the video, or leave `video` out of the row")
    try:
        read_timeline(checked_file(path))  # whole, within limits, and no playlist: what evaluation would refuse
        body = path.read_bytes()
        with av.open(str(path), options=OPEN_OPTIONS) as container:
            stream = container.streams.video[0]
            seconds = container.duration / av.time_base if container.duration else None
            rate = float(stream.average_rate) if stream.average_rate else None
            facts = (seconds, stream.codec_context.width, stream.codec_context.height, rate)
    except (MediaError, av.FFmpegError, OSError) as error:
        raise PublishError(f"row {row['id']}: {path} is no video that can be read ({str(error).removeprefix(f'{path}: ')})") from error
    return Clip(path, hashlib.sha256(body).hexdigest(), len(body), *facts)


# --- statistics: tables for the card, computed from the rows and clips ------------------------------------------------------------------

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # head, lines


def tables(found: SafetySet) -> dict[str, Table]:
    """Title -> table. Every number is counted here, from what goes up."""
    cells = list(found.rows)
    made: dict[str, Table] = {
        "Cells": (("Split", "Shows", "Rows", "Clips", "Visual label", "Textual label"), [_cell_line(found, c) for c in cells])
    }
    for title, key in (("Categories", "category"), ("Languages", "language")):
        counts = {cell: Counter(row.get(key) or "not given" for row in found.rows[cell]) for cell in cells}
        values = sorted({value for counter in counts.values() for value in counter})
        if values == ["not given"]:
            continue
        lines = [(value, *(f"{counts[c][value]:,}" for c in cells), f"{sum(counts[c][value] for c in cells):,}") for value in values]
        made[title] = ((title, *cells, "All"), lines)
    if found.clips:
        made["Clips"] = (("What", "Least", "Median", "Most", "Sum"), _clip_lines(list(found.clips.values())))
    return made


def _cell_line(found: SafetySet, cell: str) -> tuple[str, ...]:
    rows = found.rows[cell]
    labels = (_labels([row.get(key) for row in rows]) for key in ("visual_label", "textual_label"))
    shown = CELLS.get(cell, "as the rows say")
    return (cell, shown, f"{len(rows):,}", f"{len({row['video'] for row in rows if row.get('video')}):,}", *labels)


def _labels(values: list[int | None]) -> str:
    counts = Counter({0: "safe", 1: "harmful", None: "none"}[value] for value in values)
    return ", ".join(name if len(counts) == 1 else f"{name} {count:,}" for name, count in sorted(counts.items()))


def _clip_lines(clips: list[Clip]) -> list[tuple[str, ...]]:
    lengths = [clip.seconds for clip in clips if clip.seconds]
    lines: list[tuple[str, ...]] = []
    for what, values, digits in (("Seconds", lengths, 1), ("Size in kB", [clip.bytes / 1000 for clip in clips], 0)):
        if values:
            lines.append((what, *(f"{v:,.{digits}f}" for v in (min(values), median(values), max(values), sum(values)))))
    shapes = sorted({(clip.width * clip.height, f"{clip.width}×{clip.height}") for clip in clips})
    lines.append(("Width × height", shapes[0][1], "–", shapes[-1][1], "–"))
    return lines
