"""The leaderboard: a row a model, a column a set's main figure, and marks where a cell may not be compared with its column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from videosafety.lmms_eval_tasks.catalog import FOLDER, catalog
from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report.load import Run, pooled
from videosafety.lmms_eval_tasks.report.repeat import NOT_RECORDED, policy_words, scrub
from videosafety.lmms_eval_tasks.report.sets import set_of
from videosafety.lmms_eval_tasks.report.summary import metric_name, metric_rank, names_in_order

TEMPORAL = "vsb_temporal"  # pools unlike things; it has a figure of its own
TWINS = ("_text", "_prompted")  # the same rows without what is shown, or with an instruction
RULE = "rule"  # the judge of figures that no judge is asked for
PINS = ("version", "revision", "commit", "hash", "sha256", "split")  # what tells one state of a data set from another


@dataclass(frozen=True, slots=True)
class Column:
    """One metric over the tasks of a set that one group of ours pools, or over one task that is in no group."""

    title: str  # the set
    name: str  # the group or task
    metric: str
    higher: bool
    tasks: tuple[str, ...]
    twin: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """A column's figure of one model. `mark` is the number of the note that says why it is not comparable, 0 where it is."""

    rate: Rate
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One model with one judge: its runs by their places, and a cell a column, None where no task of it was run."""

    model: str
    runs: tuple[int, ...]
    judges: tuple[str, ...]
    cells: tuple[Cell | None, ...]

    @property
    def unscored(self) -> tuple[int, int]:
        """Rows without a verdict, of all rows, over the cells shown."""
        rates = [cell.rate for cell in self.cells if cell]
        return sum(rate.unscored for rate in rates), sum(rate.n for rate in rates)


@dataclass(frozen=True, slots=True)
class Board:
    """`notes` are sentences, the first belonging to mark 1."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


# --- what a figure rests on -----------------------------------------------------------------------------------------------------------

Basis = Mapping[str, tuple[Hashable, str]]  # what must be equal -> (the thing compared, in words)


def basis(run: Run, name: str) -> Basis:
    """What must be equal for two runs' main figures of a task to be comparable: judge, policy, data, task version, rows."""
    task = run.tasks[name]
    judges = judges_of(run, name)
    data = run.settings.get("data") or {}
    noted = data.get(set_of(name), data)
    pins = {k: v for k, v in _flat(noted) if v is not None and k.rpartition(".")[2] in PINS}
    version = (run.raw.get("versions") or {}).get(name)
    facts: dict[str, tuple[Hashable, str]] = {
        "judge": (judges, ", ".join(judges) or "unknown"),
        "policy": ("", "") if judges == (RULE,) else (policy_words(run), policy_words(run)),
        "data": (json.dumps(pins, sort_keys=True), ", ".join(f"{k.rpartition('.')[2]} {str(v)[:12]}" for k, v in pins.items())),
        "task version": (version, str(version or NOT_RECORDED)),
        "rows": (task.rate.n, str(task.rate.n)),
    }
    if task.samples:
        asked = sorted((str(sample.record.get("id")), sample.query) for sample in task.samples)
        facts["rows"] = (hashlib.sha256(repr(asked).encode(errors="replace")).hexdigest(), str(task.rate.n))
    if not pins:
        # without a revision only the rows themselves can tell that the data are the same
        facts["data"] = ("" if task.samples else run.path, f"revision {NOT_RECORDED}")
    return facts


def judges_of(run: Run, name: str) -> tuple[str, ...]:
    """Ids of the judges of a task's main figure: from its rows, else as the run noted them."""
    return tuple(sorted({str(s.record["judge"]) for s in run.tasks[name].samples or () if s.record.get("judge")}) or run.judges)


def _flat(facts: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items() if isinstance(facts, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value


def differing(a: Mapping[str, Basis], b: Mapping[str, Basis]) -> dict[str, tuple[str, str]]:
    """What two cells differ in: fact -> (words of a, words of b). Each maps the tasks of its cell to their basis."""
    found = {"tasks": (", ".join(a), ", ".join(b))} if set(a) != set(b) else {}
    for task in a:
        for fact, (key, words) in a[task].items() if task in b else ():
            if b[task][fact][0] != key:
                other = b[task][fact][1]
                found.setdefault(fact, (words, other) if words != other else (f"others ({words})", "those of the rest"))
    return found


# --- columns --------------------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads task files; what `!function` names stays text."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)


@cache
def groups_of_ours() -> dict[str, tuple[str, ...]]:
    """Every group in our task folder -> its tasks, those of groups inside it included."""
    direct: dict[str, list[str]] = {}
    for file in sorted(FOLDER.glob("*/*.yaml")):
        text = file.read_text(encoding="utf-8")
        if "\ngroup:" in f"\n{text}":
            entry = yaml.load(text, _Loader)  # noqa: S506  (a safe loader, our own file)
            direct[str(entry["group"])] = list(entry["task"])

    def leaves(name: str) -> Iterator[str]:
        for member in direct[name]:
            yield from leaves(member) if member in direct else (member,)

    return {name: tuple(leaves(name)) for name in direct}


def columns(runs: Sequence[Run]) -> list[Column]:
    """The columns of these runs' tasks: of each set the smallest of our groups that a task is in, else the task; DSR, then FRR."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in names_in_order(runs):
        owner = set_of(name)
        if owner == TEMPORAL:
            continue
        around = [(len(tasks), group) for group, tasks in groups_of_ours().items() if name in tasks]
        blocks.setdefault((owner, min(around)[1] if around else name), []).append(name)
    found = []
    for (owner, block), names in blocks.items():
        facts = catalog().get(owner)
        kinds = {task.metric: task.higher for name in names for run in runs if (task := run.tasks.get(name))}
        for metric in sorted(kinds, key=metric_rank):
            tasks = tuple(n for n in names if any(n in run.tasks and run.tasks[n].metric == metric for run in runs))
            twin = all(n.endswith(TWINS) for n in names)
            title = block if len(names) > 1 and set(names) <= set(groups_of_ours().get(block, ())) else names[0]
            found.append(Column(facts.title if facts else owner, title, metric, kinds[metric], tasks, twin))
    return found


# --- the board ------------------------------------------------------------------------------------------------------------------------


def board(runs: Sequence[Run], twins: bool = False) -> Board:
    """The leaderboard over the models of these runs; with `twins`, that of text-only and prompted tasks."""
    models: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        models.setdefault(model_key(run), []).append(i)
    shown = [column for column in columns(runs) if column.twin == twins]
    notes: dict[tuple[str, str], list[str]] = {}
    by_column = [_cells(runs, list(models.values()), column, notes) for column in shown]
    rows = []
    for place, members in enumerate(models.values()):
        cells = tuple(cells[place] for cells in by_column)
        if any(cells):
            judges = {
                j for column in shown for name in column.tasks for i in members if name in runs[i].tasks for j in judges_of(runs[i], name)
            }
            rows.append(Row(runs[members[0]].model, tuple(members), tuple(sorted(judges - {RULE})), cells))
    sentences = tuple(f"{who}, in {', '.join(where)}: {why}." for (who, why), where in notes.items())
    return Board(tuple(shown), tuple(rows), sentences)


def model_key(run: Run) -> str:
    """Equal for runs that make one row: the same model with the same arguments and judge."""
    judge = run.settings.get("judge") or {}
    parts = [run.model, run.config.get("model"), run.config.get("model_args"), judge.get("spec"), judge.get("id")]
    return json.dumps(parts, sort_keys=True, default=str)


def _cells(
    runs: Sequence[Run], models: Sequence[Sequence[int]], column: Column, notes: dict[tuple[str, str], list[str]]
) -> list[Cell | None]:
    """A column's cells, one a model. A cell that differs from what most of the column rests on (the first, if tied) is marked."""
    rates: list[Rate | None] = []
    bases: list[dict[str, Basis]] = []
    for members in models:
        held = {
            name: runs[i] for i in members for name in column.tasks if name in runs[i].tasks and runs[i].tasks[name].metric == column.metric
        }
        rates.append(pooled([held[name].tasks[name] for name in column.tasks if name in held]) if held else None)
        bases.append({name: basis(held[name], name) for name in column.tasks if name in held})
    filled = [i for i, rate in enumerate(rates) if rate]
    norm = max(filled, key=lambda i: sum(not differing(bases[i], bases[j]) for j in filled))
    cells: list[Cell | None] = []
    for i, rate in enumerate(rates):
        unlike = differing(bases[i], bases[norm]) if rate else {}
        if rate and unlike:
            run = runs[models[i][0]]
            who = f"{run.label} {scrub(run.model)}"
            why = "; ".join(f"{fact} {scrub(own)} instead of {scrub(theirs)}" for fact, (own, theirs) in unlike.items())
            notes.setdefault((who, why), []).append(f"{column.name} {metric_name(column.metric)}")
            cells.append(Cell(rate, list(notes).index((who, why)) + 1))
        else:
            cells.append(Cell(rate) if rate else None)
    return cells


PLURALS = {"judge": "judges", "policy": "policies", "task version": "task versions"}


def mismatches(runs: Sequence[Run]) -> list[str]:
    """Why columns of several runs may not be compared line by line: what the tasks that they share rest on, where that differs."""
    found: dict[str, list[str]] = {}
    for name in names_in_order(runs):
        first, *rest = [{name: basis(run, name)} for run in runs if name in run.tasks]
        for fact in {fact for other in rest for fact in differing(first, other)}:
            found.setdefault(fact, []).append(name)
    return [
        f"These runs differ in their {PLURALS.get(fact, fact)} ({', '.join(names)}): do not read their figures as like for like."
        for fact, names in sorted(found.items())
    ]
