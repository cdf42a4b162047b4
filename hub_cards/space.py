"""The leaderboard's page, one self-contained file: a table to sort, DSR against FRR, a radar by category; made from results.parquet."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from videosafety.hub_cards.lines import BOARD, CATEGORY, TWINS, Line, as_board, entries
from videosafety.lmms_eval_tasks import report
from videosafety.lmms_eval_tasks.report import summary
from videosafety.lmms_eval_tasks.report.board import Board
from videosafety.lmms_eval_tasks.report.figures import colour, radar
from videosafety.lmms_eval_tasks.report.repeat import scrub

REPORT = Path(report.__file__).parent  # its style sheet, its script and its leaderboard are used as they are
HERE = Path(__file__).with_name("templates")
SIDE, EDGE = 440, 64  # the plot's own coordinates: width and height of the square, and the strip around it


@dataclass(frozen=True, slots=True)
class Label:
    """How an entry is marked on the page: A, B, … as in the report."""

    label: str


@dataclass(frozen=True, slots=True)
class Point:
    """One entry's two figures on one set, in the plot. Without one of them it has no place."""

    place: int
    model: str
    dsr: Line
    frr: Line


@dataclass(frozen=True, slots=True)
class Scope:
    """Tasks whose rows are counted together by category, and the entries' rates there."""

    title: str
    radar: Markup
    entries: tuple[tuple[int, str], ...]
    rows: tuple[tuple[str, tuple[Line | None, ...]], ...]  # category title -> one figure an entry


def page(lines: Sequence[Line], title: str, repo: str) -> str:
    """The page as text. It loads nothing from anywhere; without JavaScript only the sorting is gone."""
    environment = Environment(
        loader=FileSystemLoader([HERE, REPORT]), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shared = ("interval_words", "metric_hint", "metric_name", "percent", "printable", "value_words", "bounds_words", "task_title")
    environment.globals |= {name: getattr(summary, name) for name in shared}
    environment.globals |= {"scrub": scrub, "heads": heads, "colour": colour}
    script = (REPORT / "page.js").read_text(encoding="utf-8")
    boards = [as_board(lines, BOARD), as_board(lines, TWINS)]
    labels = [Label(chr(ord("A") + i) if i < 26 else f"R{i + 1}") for i in range(len(entries(lines)))]
    return environment.get_template("space.html.jinja").render(
        title=title,
        repo=repo,
        boards=boards,
        temporal=False,  # the board template asks: temporal figures have no column and no place here
        runs=labels,
        models=[next(line for line in lines if line.entry == entry) for entry in entries(lines)],
        plots=[(name, scatter(found, labels)) for name, found in points(lines).items()],
        scopes=scopes(lines, labels),
        tasks=[line for line in lines if line.scope == "task"],
        places=entries(lines),
        style=Markup((REPORT / "page.css").read_text(encoding="utf-8") + (HERE / "space.css").read_text(encoding="utf-8")),  # noqa: S704  (our own files)
        script=Markup(script),  # noqa: S704  (our own file)
        # the policy names the one script by its hash: were a name ever to get past the escaping, the browser would not run it
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=version("videosafety"),
    )


def heads(shown: Board) -> list[tuple[str, str, int]]:
    """The upper line of the table's head: (set, group or task, how many columns)."""
    return [(*head, len(list(same))) for head, same in groupby(shown.columns, key=lambda column: (column.title, column.name))]


# --- DSR against FRR --------------------------------------------------------------------------------------------------------------------


def points(lines: Sequence[Line]) -> dict[str, list[Point]]:
    """Set -> the entries that have both figures there, comparable and of enough rows."""
    order = entries(lines)
    found: dict[str, list[Point]] = {}
    cells = [line for line in lines if line.scope == BOARD and line.figure is not None and not line.note]
    for dataset in dict.fromkeys(line.dataset for line in cells):
        for place, entry in enumerate(order):
            mine = [line for line in cells if line.dataset == dataset and line.entry == entry]
            dsr = next((line for line in mine if line.metric == "dsr"), None)
            frr = next((line for line in mine if line.metric == "frr"), None)
            if dsr and frr:
                found.setdefault(dsr.dataset_title, []).append(Point(place, dsr.model, dsr, frr))
    return found


def scatter(found: Sequence[Point], labels: Sequence[Label]) -> Markup:
    """DSR upwards, FRR to the right, both from 0 to 100 %, with their 95 % intervals; better is up and left."""
    parts = [Markup("")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _spot(share, share)
        parts.append(Markup('<line class="ring" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, EDGE, EDGE + SIDE))
        parts.append(Markup('<line class="ring" x1="{1}" x2="{2}" y1="{0:.1f}" y2="{0:.1f}"/>').format(y, EDGE, EDGE + SIDE))
        parts.append(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:.0f} %</text>').format(x, EDGE + SIDE + 18, 100 * share))
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:.0f} %</text>').format(EDGE - 6, y + 4, 100 * share))
    middle = EDGE + SIDE / 2
    parts.append(
        Markup('<text class="title" x="{}" y="{}" text-anchor="middle">false refusal rate (FRR)</text>').format(middle, EDGE + SIDE + 38)
    )
    turned = Markup('<text class="title" transform="translate(16 {}) rotate(-90)" text-anchor="middle">defence success rate (DSR)</text>')
    parts.append(turned.format(middle))
    parts.append(Markup('<text x="{}" y="{}">↖ better</text>').format(EDGE + 8, EDGE + 18))
    parts += [_dot(point, labels[point.place].label) for point in found]
    label = "DSR against FRR: " + ", ".join(f"{p.model} {summary.percent(p.dsr.value)} / {summary.percent(p.frr.value)}" for p in found)
    frame = Markup('<svg class="radar scatter" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}</svg>')
    return frame.format(SIDE + 2 * EDGE, label, Markup("").join(parts))


def _spot(frr: float, dsr: float) -> tuple[float, float]:
    return EDGE + SIDE * frr, EDGE + SIDE * (1 - dsr)


def _dot(point: Point, label: str) -> Markup:
    dsr, frr = point.dsr, point.frr
    x, y = _spot(frr.value or 0.0, dsr.value or 0.0)
    marks = Markup("")
    if dsr.low is not None and dsr.high is not None:
        marks += _whisker((x, x), (_spot(0, dsr.low)[1], _spot(0, dsr.high)[1]))
    if frr.low is not None and frr.high is not None:
        marks += _whisker((_spot(frr.low, 0)[0], _spot(frr.high, 0)[0]), (y, y))
    hint = f"{point.model}: DSR {summary.percent(dsr.value)}, FRR {summary.percent(frr.value)}, n = {dsr.n_scored} and {frr.n_scored}"
    circle = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="10"><title>{}</title></circle>').format(x, y, hint)
    name = Markup('<text class="on" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x, y + 4, label)
    return Markup('<g class="{}">{}{}{}</g>').format(colour(point.place), marks, circle, name)


def _whisker(xs: tuple[float, float], ys: tuple[float, float]) -> Markup:
    return Markup('<line class="edge" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(*xs, *ys)


# --- by category ------------------------------------------------------------------------------------------------------------------------


def scopes(lines: Sequence[Line], labels: Sequence[Label]) -> list[Scope]:
    """DSR by category: a radar and a table for the tasks taken together, in the policy's order of categories."""
    order = entries(lines)
    found = []
    for name in dict.fromkeys(line.name for line in lines if line.scope == CATEGORY):
        mine = [line for line in lines if line.scope == CATEGORY and line.name == name]
        held = [(place, entry) for place, entry in enumerate(order) if any(line.entry == entry for line in mine)]
        groups = summary.category_groups({str(line.category) for line in mine})
        axes = [axis for _, members in groups for axis in members]
        by_key: dict[tuple[str, Any], Line] = {(line.entry, line.category): line for line in mine}
        series = [
            (place, labels[place].label, {c: by_key[entry, c].rate for c, _ in axes if (entry, c) in by_key}) for place, entry in held
        ]
        rows = tuple((title, tuple(by_key.get((entry, category)) for _, entry in held)) for category, title in axes)
        found.append(Scope(name, radar(axes, series), tuple((place, _model_of(mine, entry)) for place, entry in held), rows))
    return found


def _model_of(lines: Sequence[Line], entry: str) -> str:
    """The model of an entry."""
    return next(line.model for line in lines if line.entry == entry)
