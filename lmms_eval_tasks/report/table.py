"""The report in the terminal: one line a figure and run, with n, the interval and what unscored rows could change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videosafety.lmms_eval_tasks.report.board import Cell, board, mismatches
from videosafety.lmms_eval_tasks.report.load import Run
from videosafety.lmms_eval_tasks.report.paired import paired
from videosafety.lmms_eval_tasks.report.repeat import data_words, date_words, judge_words, policy_words, scrub
from videosafety.lmms_eval_tasks.report.sets import sections
from videosafety.lmms_eval_tasks.report.summary import (
    bounds_words,
    figure_interval,
    figure_words,
    interval_words,
    metric_name,
    panel_words,
    printable,
    value_words,
    warnings,
)

WITH_BOUNDS = 110  # columns of the terminal; a narrower one keeps the figures whole and goes without the bounds


def print_table(runs: list[Run], console: Console) -> None:
    """Prints every run's safety figures, the leaderboard of several models, other tasks, and the warnings that go with them.

    Rates and intervals are in per cent. A task with fewer than ten scored rows shows "n=7, too few", one with none "no verdicts".
    """
    several = len(runs) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Task", *(["Run"] if several else []), "Metric"):
        table.add_column(column, overflow="fold")
    bounds = console.width >= WITH_BOUNDS
    for column in ("Value", "95 % interval", "Scored", *(["Bounds"] if bounds else [])):
        table.add_column(column, justify="right", no_wrap=True)
    silent: dict[str, None] = {}
    for part in sections(runs):
        for line in (*part.lines, *part.groups):
            figure, rate = line.figure, line.figure.rate
            if not line.main and not rate.n_scored:
                silent[f"{figure.name} ({figure.reason})" if figure.reason else figure.name] = None
                continue
            cells = [line.name, *([runs[line.run].label] if several else []), metric_name(figure.name), figure_words(figure)]
            cells += [figure_interval(figure), f"{rate.n_scored}/{rate.n}", *([bounds_words(rate)] if bounds else [])]
            # Text and not str: names from files must not be read as rich's markup
            table.add_row(*map(Text, cells), style="" if line.main else "dim")
    for run in runs:
        console.print(Text((f"{run.label}  " if several else "") + scrub(run.model), style="bold"))
        facts = f"{date_words(run)} · judge {judge_words(run)} · data {data_words(run)} · policy {policy_words(run)}"
        console.print(Text(facts, style="dim"))
    if table.row_count:
        console.print()
        console.print(table)
        legend = "DSR: higher is better. FRR: lower is better. Bounds"
        legend += ": every unscored row counted one way, or the other." if bounds else f" from {WITH_BOUNDS} columns on, and on the page."
        console.print(Text(legend, style="dim"))
        if silent:
            console.print(Text(f"Without a verdict, and not shown: {', '.join(silent)}.", style="dim"))
    _print_board(runs, console)
    for run in runs:
        for words in panel_words(run):
            console.print(Text((f"{run.label}: " if several else "") + scrub(words)))
    _print_paired(runs, console)
    _print_other(runs, console)
    notes = [(f"{run.label}: " if several else "") + line for run in runs for line in warnings(run)]
    for words in mismatches(runs) + notes:
        console.print(Text(f"! {words}", style="yellow"))


def _print_board(runs: list[Run], console: Console) -> None:
    """The leaderboard turned round: a line a set and metric, a column a model, since terminals are narrow."""
    found = board(runs)
    if len(found.rows) < 2:
        return
    table = Table("Leaderboard", box=None, pad_edge=False, header_style="bold")
    for row in found.rows:
        table.add_column(Text(scrub(row.model)))
    for i, column in enumerate(found.columns):
        cells = [_cell_words(row.cells[i]) for row in found.rows]
        table.add_row(Text(f"{column.name} {metric_name(column.metric)} {'↑' if column.higher else '↓'}"), *map(Text, cells))
    judges = [", ".join(scrub(list(row.judges))) or "rules" for row in found.rows]
    table.add_row(Text("judge"), *map(Text, judges), style="dim")
    table.add_row(Text("unscored"), *(Text("{} of {}".format(*row.unscored)) for row in found.rows), style="dim")
    console.print()
    console.print(table)
    for number, note in enumerate(found.notes, 1):
        console.print(Text(f"[{number}] not comparable: {note}", style="yellow"))


def _cell_words(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    mark = f" [{cell.mark}]" if cell.mark else ""
    interval = f"\n{interval_words(cell.rate)}, n={cell.rate.n_scored}" if printable(cell.rate) else ""
    return f"{value_words(cell.rate)}{mark}{interval}"


def _print_paired(runs: list[Run], console: Console) -> None:
    pairs = paired(runs)
    if not pairs:
        return
    table = Table("Run against run", "Task", "Metric", box=None, pad_edge=False, header_style="bold")
    for column in ("Change, points", "95 % interval", "Rows that changed", "McNemar p", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in pairs:
        cells = (f"{pair.a.label} → {pair.b.label}", pair.task, metric_name(pair.metric), *pair.words, str(pair.over_all.n))
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
