"""The report in the terminal: one line a task and run, with n, the interval and what unscored rows could change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videosafety.lmms_eval_tasks.report.load import Run
from videosafety.lmms_eval_tasks.report.paired import paired
from videosafety.lmms_eval_tasks.report.repeat import data_words, date_words, judge_words, policy_words, scrub
from videosafety.lmms_eval_tasks.report.summary import (
    METRIC_NAMES,
    bounds_words,
    interval_words,
    mismatches,
    names_in_order,
    value_words,
    warnings,
)


def print_table(runs: list[Run], console: Console) -> None:
    """Prints every run's safety figures, its other tasks, and the warnings that go with them.

    Rates and intervals are in per cent. A task with fewer than ten scored rows shows "n=7, too few", one with none "no verdicts".
    """
    several = len(runs) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Task", *(["Run"] if several else []), "Metric"):
        table.add_column(column, no_wrap=True)
    for column in ("Value", "95 % interval", "Scored", "Unscored", "Bounds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names_in_order(runs):
        for run in (r for r in runs if name in r.tasks):
            task = run.tasks[name]
            figure = task.rate
            cells = [name, *([run.label] if several else []), METRIC_NAMES[task.metric], value_words(figure), interval_words(figure)]
            cells += [f"{figure.n_scored}/{figure.n}", str(figure.unscored), bounds_words(figure)]
            # Text and not str: names from files must not be read as rich's markup
            table.add_row(*map(Text, cells))
    for run in runs:
        console.print(Text((f"{run.label}  " if several else "") + scrub(run.model), style="bold"))
        facts = f"{date_words(run)} · judge {judge_words(run)} · data {data_words(run)} · policy {policy_words(run)}"
        console.print(Text(facts, style="dim"))
    if table.row_count:
        console.print()
        console.print(table)
        legend = "DSR: higher is better. FRR: lower is better. Bounds: every unscored row counted one way, or the other."
        console.print(Text(legend, style="dim"))
    _print_paired(runs, console)
    _print_other(runs, console)
    notes = [(f"{run.label}: " if several else "") + line for run in runs for line in warnings(run)]
    for line in mismatches(runs) + notes:
        console.print(Text(f"! {line}", style="yellow"))


def _print_paired(runs: list[Run], console: Console) -> None:
    pairs = paired(runs)
    if not pairs:
        return
    table = Table("Run against run", "Task", "Metric", box=None, pad_edge=False, header_style="bold")
    for column in ("Change, points", "95 % interval", "Rows that changed", "McNemar p", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in pairs:
        cells = (f"{pair.a.label} → {pair.b.label}", pair.task, METRIC_NAMES[pair.metric], *pair.words, str(pair.over_all.n))
        table.add_row(*map(Text, cells))
    console.print()
    console.print(table)


def _print_other(runs: list[Run], console: Console) -> None:
    rows = [(name, run.label, *figure) for run in runs for name, figure in run.other.items()]
    if not rows:
        return
    table = Table("Other task", "Run", "Metric", "Value", box=None, pad_edge=False, header_style="bold")
    for name, label, metric, value in sorted(rows):
        table.add_row(*map(Text, (name, label, metric, "–" if value is None else f"{value:.4g}")))
    console.print()
    console.print(table)
