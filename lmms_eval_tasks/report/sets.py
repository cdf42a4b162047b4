"""The report's sections, one a data set: its tasks with every figure, and beside them what others published, from its dataset.yml."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from videosafety.lmms_eval_tasks.catalog import DataSet, Reference, catalog
from videosafety.lmms_eval_tasks.report.further import Figure
from videosafety.lmms_eval_tasks.report.load import Run, Task
from videosafety.lmms_eval_tasks.report.summary import names_in_order

OTHER = "other"  # tasks with our metrics that are in no set of ours, such as those of a user's own YAMLs


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of a task or group in one run; `main` where it is the task's main figure."""

    name: str
    run: int  # its place among the runs
    figure: Figure
    main: bool


@dataclass(frozen=True, slots=True)
class Beside:
    """What others published for one task, and our figures of it, if it was run."""

    task: str
    ours: tuple[Line, ...]
    theirs: tuple[Reference, ...]

    @property
    def runs(self) -> list[tuple[int, list[Line]]]:
        """(place of the run, our figures that have a verdict)."""
        found: dict[int, list[Line]] = {}
        for line in self.ours:
            if line.figure.rate.n_scored:
                found.setdefault(line.run, []).append(line)
        return list(found.items())

    @property
    def sources(self) -> list[tuple[str, str, list[tuple[str, list[Reference]]]]]:
        """(source, note, [(model, its figures)]), each in the order of its first figure."""
        found: dict[tuple[str, str], dict[str, list[Reference]]] = {}
        for entry in self.theirs:
            found.setdefault((entry.source, entry.note), {}).setdefault(entry.model, []).append(entry)
        return [(*key, list(models.items())) for key, models in found.items()]


@dataclass(frozen=True, slots=True)
class Section:
    """One set: `facts` is None for tasks of no set of ours. `lines` are by task, metric and run; `groups` pool tasks of this set only."""

    name: str
    facts: DataSet | None
    tasks: tuple[str, ...]
    lines: tuple[Line, ...]
    groups: tuple[Line, ...]
    beside: tuple[Beside, ...]

    @property
    def title(self) -> str:
        return self.facts.title if self.facts else "Tasks of no set in the catalogue"


@cache
def _owners() -> dict[str, str]:
    return {task.name: found.name for found in catalog().values() for task in found.tasks}


def set_of(task: str) -> str:
    """The name of the set that a task belongs to, `OTHER` where none lists it."""
    return _owners().get(task, OTHER)


def main_figure(task: Task) -> Figure:
    """A task's main figure in the form of the further ones."""
    return Figure(task.metric, task.rate, task.higher)


def sections(runs: Sequence[Run]) -> list[Section]:
    """The sets that the runs hold tasks of, in the order of their first tasks; tasks of no set last."""
    members: dict[str, list[str]] = {}
    for name in names_in_order(runs):
        members.setdefault(set_of(name), []).append(name)
    return [_section(runs, name, members[name]) for name in sorted(members, key=lambda name: name == OTHER)]


def across(runs: Sequence[Run]) -> list[Line]:
    """Figures of groups that pool tasks of several sets."""
    return _grouped(runs, lambda sets: len(sets) > 1)


def _section(runs: Sequence[Run], name: str, tasks: Sequence[str]) -> Section:
    lines = tuple(line for task in tasks for line in _lines(runs, task))
    facts = catalog().get(name)
    beside = []
    for task in dict.fromkeys((*tasks, *(entry.task for entry in facts.reference))) if facts else ():
        theirs = tuple(entry for entry in facts.reference if entry.task == task) if facts else ()
        if theirs:
            beside.append(Beside(task, tuple(line for line in lines if line.name == task), theirs))
    return Section(name, facts, tuple(tasks), lines, tuple(_grouped(runs, lambda sets: sets == {name})), tuple(beside))


def _lines(runs: Sequence[Run], task: str) -> Iterable[Line]:
    """Every figure of a task, run beside run: the main ones first, then the further ones in the task's order."""
    found = [Line(task, i, main_figure(run.tasks[task]), True) for i, run in enumerate(runs) if task in run.tasks]
    found += [Line(task, i, figure, False) for i, run in enumerate(runs) if task in run.tasks for figure in run.tasks[task].also]
    order = list(dict.fromkeys(line.figure.name for line in found))
    return sorted(found, key=lambda line: (order.index(line.figure.name), line.run))


def _grouped(runs: Sequence[Run], fits: Callable[[set[str]], bool]) -> list[Line]:
    found = [
        Line(group.name, i, figure, False)
        for i, run in enumerate(runs)
        for group in run.groups
        if fits({set_of(task) for task in group.tasks if task in run.tasks})
        for figure in group.figures
    ]
    names = list(dict.fromkeys((line.name, line.figure.name) for line in found))
    order = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in names))}
    return sorted(found, key=lambda line: (order[line.name], names.index((line.name, line.figure.name)), line.run))
