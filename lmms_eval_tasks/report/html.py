"""The report as one self-contained HTML page: plain data from summary.py and repeat.py goes through an autoescaping template."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report import figures, repeat, summary
from videosafety.lmms_eval_tasks.report.load import ReportError, Run, Sample
from videosafety.lmms_eval_tasks.report.paired import paired

HERE = Path(__file__).parent
MAX_SAMPLES = 300  # embedded rows of one run
MAX_ANSWER = 6000  # characters of an answer; the page says where one is cut


def write_html(runs: list[Run], out: Path) -> None:
    """Writes the page of these runs (see `load`) to `out`. It loads nothing from anywhere and works without JavaScript.

    Raises:
        ReportError: `out` cannot be written.
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
    environment.globals |= {"bar": figures.bar, "colour": figures.colour}
    environment.filters["scrub"] = repeat.scrub
    script = (HERE / "page.js").read_text(encoding="utf-8")
    # the policy names the one script by its hash: were an answer ever to get past the escaping, the browser would not run it
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    samples = [(run, summary.chosen(run, MAX_SAMPLES), sum(len(t.samples or ()) for t in run.tasks.values())) for run in runs]
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        several=len(runs) > 1,
        tasks=summary.names_in_order(runs),
        scopes=[_scope(runs, scope) for scope in summary.scopes(runs)],
        grids=[_grids(run) for run in runs],
        reasons=[(run, *summary.reasons(run)) for run in runs],
        paired=paired(runs),
        samples=samples,
        choices=_choices([s for _, shown, _ in samples for s in shown]),
        max_answer=MAX_ANSWER,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704  (our own file)
        script=Markup(script),  # noqa: S704  (our own file)
        script_hash=digest,
        version=version("videosafety"),
    )


REPEAT = ("command", "data_words", "date_words", "facts", "judge_words", "policy_words", "scrub")  # what the template calls
SUMMARY = (
    "METRIC_HINTS",
    "METRIC_NAMES",
    "bounds_words",
    "category_title",
    "harmful",
    "interval_words",
    "mismatches",
    "outcome",
    "pairs",
    "percent",
    "printable",
    "reason_of",
    "task_title",
    "value_words",
    "warnings",
)


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
        columns = [(run.tasks[name].metric, summary.rates_by(run, [name], key)) for name in tasks]
        seen = {value for _, rates in columns for value in rates}
        titles = _category_titles(seen) if key == "category" else [(v, v) for v in sorted(seen, key=lambda v: (v != "en", v))]
        rows = [(title, [(rates.get(v), _shade(metric, rates.get(v))) for metric, rates in columns]) for v, title in titles]
        grids.append({"key": key, "tasks": tasks, "rows": rows})
    return grids


def _category_titles(seen: set[str]) -> list[tuple[str, str]]:
    return [member for _, members in summary.category_groups(seen) for member in members]


def _shade(metric: str, figure: Rate | None) -> str:
    """The style-sheet class of a table cell: q0 (good) to q4 (bad), none without a printable rate."""
    if figure is None or figure.value is None or not summary.printable(figure):
        return ""
    badness = 1 - figure.value if metric == "dsr" else figure.value
    return f"q{min(4, int(badness * 5))}"


def _choices(shown: list[Sample]) -> dict[str, list[tuple[str, str]]]:
    """What each filter offers: (value, title), only what some embedded row has."""
    categories = _category_titles({str(s.record["category"]) for s in shown if s.record.get("category")})
    languages = sorted({str(s.record["language"]) for s in shown if s.record.get("language")})
    return {
        "task": [(v, v) for v in dict.fromkeys(s.task for s in shown)],
        "category": categories,
        "language": [(v, v) for v in languages],
        "verdict": [(v, v) for v in ("unsafe", "refused", "unscored", "safe", "answered") if any(summary.outcome(s) == v for s in shown)],
    }
