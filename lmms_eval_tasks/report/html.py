"""The report as one self-contained HTML page: plain data from summary.py and repeat.py goes through an autoescaping template."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report import figures, repeat, summary
from videosafety.lmms_eval_tasks.report.board import Board, board, mismatches
from videosafety.lmms_eval_tasks.report.load import ReportError, Run, Sample
from videosafety.lmms_eval_tasks.report.paired import paired
from videosafety.lmms_eval_tasks.report.sets import Line, Section, across, sections
from videosafety.lmms_eval_tasks.report.temporal import plots

HERE = Path(__file__).parent
MAX_SAMPLES = 300  # embedded rows of one run
MAX_ANSWER = 6000  # characters of an answer; the page says where one is cut
MAX_CARDS = 12  # headline cards of one run that stand open
OPEN_LINES, OPEN_REFERENCES = 60, 16  # longer tables of a set are folded


def write_html(runs: list[Run], out: Path) -> None:
    """Writes the page of these runs (see `load`) to `out`. It loads nothing from anywhere and works without JavaScript.

    Raises:
        ReportError: `out` cannot be written, or a log is not whole.
    """
    # a lone surrogate in an answer is no UTF-8: it becomes "?"
    text = render(runs).encode("utf-8", errors="replace")
    try:
        out.write_bytes(text)
    except OSError as error:
        raise ReportError(f"{out}: cannot be written ({error.strerror}).") from error


def render(runs: list[Run]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {name: getattr(summary, name) for name in SUMMARY}
    environment.globals |= {name: getattr(repeat, name) for name in REPEAT}
    environment.globals |= {"bar": figures.bar, "colour": figures.colour, "mismatches": mismatches}
    environment.globals |= {f.__name__.lstrip("_"): f for f in (_heads, _bar_metrics, _bars_of, _references)}
    environment.filters |= {"scrub": repeat.scrub, "breakable": _breakable}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    # the policy names the one script by its hash: were an answer ever to get past the escaping, the browser would not run it
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    samples = [(run, summary.chosen(run, MAX_SAMPLES), sum(len(t.samples or ()) for t in run.tasks.values())) for run in runs]
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        several=len(runs) > 1,
        tasks=summary.names_in_order(runs),
        boards=[board(runs), board(runs, twins=True)],
        sections=sections(runs),
        across=across(runs),
        temporal=plots(runs),
        scopes=[_scope(runs, scope) for scope in summary.scopes(runs)],
        grids=[_grids(run) for run in runs],
        reasons=[(run, *summary.reasons(run)) for run in runs],
        paired=paired(runs),
        samples=samples,
        choices=_choices([s for _, shown, _ in samples for s in shown]),
        max_answer=MAX_ANSWER,
        max_cards=MAX_CARDS,
        open_lines=OPEN_LINES,
        open_references=OPEN_REFERENCES,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704  (our own file)
        script=Markup(script),  # noqa: S704  (our own file)
        script_hash=digest,
        version=version("videosafety"),
    )


REPEAT = ("command", "data_words", "date_words", "facts", "judge_words", "policy_words", "scrub")  # what the template calls
OUTCOMES = ("unsafe", "refused", "wrong", "unscored", "safe", "answered", "right")  # the filter's order
SUMMARY = (
    "bounds_words",
    "category_title",
    "figure_interval",
    "figure_words",
    "harmful",
    "interval_words",
    "metric_hint",
    "metric_name",
    "outcome",
    "pairs",
    "panel_words",
    "percent",
    "printable",
    "reason_of",
    "signed",
    "task_title",
    "value_words",
    "warnings",
)


def _breakable(name: str) -> Markup:
    """A task's name that a narrow place may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _heads(shown: Board) -> list[tuple[str, str, int]]:
    """The upper line of a leaderboard's head: (set, group or task, how many columns)."""
    return [(*head, len(list(same))) for head, same in groupby(shown.columns, key=lambda column: (column.title, column.name))]


def _bar_metrics(part: Section) -> list[tuple[str, bool]]:
    """Main metrics of a set's tasks and whether higher is better: DSR, FRR, then others."""
    seen = {line.figure.name: line.figure.higher for line in part.lines if line.main}
    return sorted(seen.items(), key=lambda pair: summary.metric_rank(pair[0]))


def _bars_of(part: Section, metric: str) -> list[tuple[str, list[Line]]]:
    """(task, its main figure in each run) of the tasks with this main metric."""
    lines = [line for line in part.lines if line.main and line.figure.name == metric]
    return [(name, [line for line in lines if line.name == name]) for name in dict.fromkeys(line.name for line in lines)]


def _references(part: Section) -> int:
    return sum(len(beside.theirs) for beside in part.beside)


def _scope(runs: list[Run], scope: summary.Scope) -> dict[str, Any]:
    """One scope's categories by group with the rates of those runs that have them, and the radar over them."""
    rates = [summary.rates_by(run, scope.tasks, "category") for run in runs]
    groups = summary.category_groups({category for found in rates for category in found})
    axes = [axis for _, members in groups for axis in members]
    series = [(i, run.label if len(runs) > 1 else run.model, rates[i]) for i, run in enumerate(runs)]
    bars = []
    for group, members in groups:
        bars.append((group, [(title, [(i, found[cid]) for i, found in enumerate(rates) if cid in found]) for cid, title in members]))
    return {"title": scope.title, "groups": bars, "radar": figures.radar(axes, series)}


def _grids(run: Run) -> list[dict[str, Any]]:
    """Tables of every task's rate by category and by language: columns, and rows of cells that may be missing."""
    tasks = [name for name in summary.names_in_order([run]) if run.tasks[name].samples]
    grids = []
    for key in ("category", "language"):
        columns = [(run.tasks[name].higher, summary.rates_by(run, [name], key)) for name in tasks]
        seen = {value for _, rates in columns for value in rates}
        titles = _category_titles(seen) if key == "category" else [(v, v) for v in sorted(seen, key=lambda v: (v != "en", v))]
        rows = [(title, [(rates.get(v), _shade(higher, rates.get(v))) for higher, rates in columns]) for v, title in titles]
        grids.append({"key": key, "tasks": tasks, "rows": rows})
    return grids


def _category_titles(seen: set[str]) -> list[tuple[str, str]]:
    return [member for _, members in summary.category_groups(seen) for member in members]


def _shade(higher: bool, figure: Rate | None) -> str:
    """The style-sheet class of a table cell: q0 (good) to q4 (bad), none without a printable rate."""
    if figure is None or figure.value is None or not summary.printable(figure):
        return ""
    badness = 1 - figure.value if higher else figure.value
    return f"q{min(4, int(badness * 5))}"


def _choices(shown: list[Sample]) -> dict[str, list[tuple[str, str]]]:
    """What each filter offers: (value, title), only what some embedded row has."""
    categories = _category_titles({str(s.record["category"]) for s in shown if s.record.get("category")})
    languages = sorted({str(s.record["language"]) for s in shown if s.record.get("language")})
    return {
        "task": [(v, v) for v in dict.fromkeys(s.task for s in shown)],
        "category": categories,
        "language": [(v, v) for v in languages],
        "verdict": [(v, v) for v in OUTCOMES if any(summary.outcome(s) == v for s in shown)],
    }
