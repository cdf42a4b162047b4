"""Reads what `lmms-eval --output_path DIR --log_samples` wrote: results files and the sample logs beside them become runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.logs import METRICS, RESULTS, SAMPLES, metric_of, read_results, read_samples
from videosafety.lmms_eval_tasks.logs import LogError as ReportError
from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report.further import COMPANIONS, ROUNDED, Figure, further, mean_of

NAMED_TASKS = 6  # a group of more is said to be over so many


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered row: what the model was asked, what it said, and the record that the judge left."""

    task: str
    metric: str
    query: str
    answer: str
    record: dict[str, Any]

    @property
    def score(self) -> float | None:
        """1.0 or 0.0 in the task's metric, None where the row is unscored."""
        return self.record.get("score")


@dataclass(frozen=True, slots=True)
class Task:
    """One safety task of one run. `samples` is None where the run was made without --log_samples, and `also` is empty then.

    `metric` is dsr, frr, or what the task counts by rule, such as an accuracy; `also` its further figures in the order of the task.
    """

    name: str
    metric: str
    rate: Rate
    samples: tuple[Sample, ...] | None
    higher: bool = True  # whether higher is better
    also: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A group's figures over its tasks, those of groups inside it included. Without sample logs they are as stated, without interval."""

    name: str
    tasks: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One results file. `other` maps tasks that measure no safety to their own main metric; `remarks` are sentences for the reader."""

    path: Path
    label: str
    date: str
    raw: dict[str, Any]
    tasks: dict[str, Task]
    other: dict[str, tuple[str, float | None]]
    remarks: tuple[str, ...] = field(default=())
    groups: tuple[Group, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return _mapping(self.raw.get("config"))

    @property
    def settings(self) -> dict[str, Any]:
        """What `videosafety.lmms_eval_tasks.run` noted: `model`, `judge`, `policy`, `data`; empty for runs of other tasks."""
        for config in _mapping(self.raw.get("configs")).values():
            noted = _mapping(_mapping(_mapping(config).get("metadata")).get("run"))
            if noted:
                return noted
        return {}

    @property
    def model(self) -> str:
        """The checkpoint's name, or that of the lmms-eval model where there is none."""
        names = (_mapping(self.settings.get("model")).get("pretrained"), self.raw.get("model_name"), self.config.get("model"))
        return next((str(name) for name in names if name), self.path.parent.name)

    @property
    def judges(self) -> list[str]:
        """Ids of the judges that gave the verdicts: from the rows, else as the run noted them."""
        seen = {str(s.record["judge"]) for t in self.tasks.values() for s in t.samples or () if s.record.get("judge")}
        noted = _mapping(self.settings.get("judge"))
        return sorted(seen) or [str(v) for v in (noted.get("id") or noted.get("spec"),) if v]


def load(paths: list[Path]) -> list[Run]:
    """Every run found in these results files and folders, in the order given; within a folder by path.

    Where two runs of one model (same model arguments, same judge) have the same task, the newest is used and both carry a remark.

    Raises:
        ReportError: a path without results, a broken file, a sample line that is not whole.
    """
    files = list(dict.fromkeys(found.resolve() for path in paths for found in _results_files(path)))
    runs = [run for run in _newest_only([_read_run(file) for file in files]) if run.tasks or run.other]
    if not runs:
        raise ReportError(f"{', '.join(map(str, paths))}: the results hold no task with a figure. Was the run stopped before it finished?")
    return [replace(run, label=_label(i)) for i, run in enumerate(runs)]


def _label(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else f"R{i + 1}"


def _results_files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.rglob(f"*{RESULTS}"))
        if not found:
            raise ReportError(f"{path}: no *{RESULTS} in this folder. Give the folder that lmms-eval's --output_path named.")
        return found
    if not path.exists():
        raise ReportError(f"{path}: no such file or folder.")
    if not path.name.endswith(RESULTS):
        raise ReportError(f"{path}: not a results file. Give the *{RESULTS} that lmms-eval wrote, or its folder.")
    return [path]


def _read_run(path: Path) -> Run:
    raw = read_results(path)
    stamp = path.name.removesuffix(RESULTS)
    groups = {name for name, members in _mapping(raw.get("group_subtasks")).items() if members} | set(_mapping(raw.get("groups")))
    tasks: dict[str, Task] = {}
    other: dict[str, tuple[str, float | None]] = {}
    records: dict[str, Columns] = {}
    remarks: list[str] = []
    for name, body in raw["results"].items():
        if name in groups:
            continue
        figures = _figures(path, name, body)
        log = path.with_name(f"{stamp}{SAMPLES}{name}.jsonl")
        # a task of ours names its main metric first, and prints n beside it
        main = next((m for m in (*METRICS, *figures) if m in figures and m not in COMPANIONS and "n_scored" in figures), None)
        samples, records[name] = _read_rows(log, name, main, figures) if log.is_file() else (None, {})
        metric = samples[0].metric if samples else main
        if metric is None:
            other[name] = next((pair for pair in figures.items() if pair[0] != "samples"), ("no figure", None))
            continue
        noted = _noted_rate(path, name, metric, figures)
        higher = _higher(raw, name, metric)
        if samples:
            measured = rate_of(samples)
            also = _also(raw, name, records[name], figures)
            tasks[name] = Task(name, metric, measured, samples, higher, also)
            remarks += _differences(name, measured, noted) + _also_differences(name, also, figures)
            records[name][metric] = [sample.record for sample in samples]
        elif noted:
            tasks[name] = Task(name, metric, noted, None, higher)
    if any(task.samples is None for task in tasks.values()):
        bare = ", ".join(task.name for task in tasks.values() if task.samples is None)
        remarks.append(
            f"Without sample logs: {bare}. Figures per category, language and answer, and further metrics, need a run with --log_samples."
        )
    found = tuple(group for name in raw["results"] if name in groups and (group := _group(path, raw, name, tasks, records)).figures)
    return Run(path, "", str(raw.get("date") or stamp), raw, tasks, other, tuple(remarks), found)


def _figures(path: Path, task: str, body: Any) -> dict[str, float | None]:
    """A task's own numbers, without their filter names ("dsr,none" -> "dsr"), standard errors left out; None for null and NaN."""
    if not isinstance(body, dict):
        raise ReportError(f"{path}: results of {task!r} are not a mapping. Is it a file that lmms-eval wrote?")
    figures: dict[str, float | None] = {}
    for key, value in body.items():
        if "stderr" in key or not (value is None or isinstance(value, int | float)):
            continue
        figures.setdefault(key.split(",")[0], None if value is None or not math.isfinite(value) else float(value))
    rows = figures.pop("samples", None)
    return figures if rows is None else figures | {"samples": rows}


def _noted_rate(path: Path, task: str, metric: str, figures: dict[str, float | None]) -> Rate | None:
    """The rate as results.json states it; None where the file lacks what our tasks always write."""
    scored, total = figures.get("n_scored"), figures.get("samples")
    if metric not in figures or scored is None or total is None:
        return None
    if not 0 <= scored <= total:
        raise ReportError(f"{path}: {task} says {scored:g} scored of {total:g} rows. Repeat the run.")
    parts = [figures.get(k) for k in (metric, "ci95_low", "ci95_high", "bound_low", "bound_high")]
    if scored and any(part is None for part in parts):
        raise ReportError(f"{path}: {task} has scored rows but no whole set of {metric}, interval and bounds. Repeat the run.")
    return Rate(int(total), int(scored), *(parts if scored else [None] * 5))


def _differences(task: str, measured: Rate, noted: Rate | None) -> list[str]:
    """Remarks where a sample log and the results file beside it do not tell the same."""
    if noted is None:
        return []
    if (measured.n, measured.n_scored) != (noted.n, noted.n_scored):
        return [
            f"{task}: the sample log has {measured.n_scored} scored of {measured.n} rows, results.json {noted.n_scored} of {noted.n}; "
            "shown is the sample log."
        ]
    if measured.value is not None and noted.value is not None and abs(measured.value - noted.value) > 1e-6:
        return [f"{task}: the sample log gives {measured.value:.4f}, results.json {noted.value:.4f}; shown is the sample log."]
    return []


Columns = dict[str, list[dict[str, Any]]]  # metric -> the record of every row


def _read_rows(path: Path, task: str, main: str | None, figures: Iterable[str]) -> tuple[tuple[Sample, ...], Columns]:
    """The rows of a log that carry a record of dsr, frr or the task's `main` metric, and their records of further figures.

    Nothing for a task of another kind.
    """
    samples: list[Sample] = []
    columns: Columns = {}
    for where, row in read_samples(path):
        metric = metric_of(row) or (main if main and isinstance(row.get(main), dict) else None)
        if metric is None:
            continue
        record = row[metric]
        if record.get("score", 0.0) not in (0.0, 1.0):
            raise ReportError(f"{where}: score {record['score']!r} of {metric} is neither 0 nor 1. Repeat the run.")
        samples.append(Sample(task, metric, _text(row.get("input")), _text(row.get("filtered_resps")), record))
        for name in figures:
            if name not in (metric, *COMPANIONS) and isinstance(row.get(name), dict):
                columns.setdefault(name, []).append(row[name])
    return tuple(samples), columns


def _also(raw: dict[str, Any], task: str, columns: Columns, figures: dict[str, float | None]) -> tuple[Figure, ...]:
    """A task's further figures, in the order of the results file."""
    listed = _mapping(_mapping(raw.get("configs")).get(task)).get("metric_list")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    made_by = {entry.get("metric"): _function_name(entry.get("aggregation")) for entry in entries}
    return tuple(further(name, columns[name], figures[name], made_by.get(name, ""), _higher(raw, task, name)) for name in columns)


def _function_name(written: Any) -> str:
    """ "share" of "<function share at 0x7f…>", as lmms-eval writes an aggregation."""
    found = re.match(r"<function (\w+) at ", str(written))
    return found[1] if found else ""


def _higher(raw: dict[str, Any], task: str, metric: str) -> bool:
    """Whether higher is better, as the results file says; where it does not, of all metrics but frr."""
    noted = _mapping(_mapping(raw.get("higher_is_better")).get(task)).get(metric)
    return noted if isinstance(noted, bool) else metric != "frr"


def _also_differences(task: str, also: Iterable[Figure], figures: dict[str, float | None]) -> list[str]:
    """Remarks where a further figure of the sample log is not the one in results.json."""
    return [
        f"{task}: the sample log gives {figure.rate.value:.4f} for {figure.name}, results.json {stated:.4f}; shown is the sample log."
        for figure in also
        if figure.rate.value is not None and (stated := figures[figure.name]) is not None and abs(figure.rate.value - stated) > ROUNDED
    ]


def _group(path: Path, raw: dict[str, Any], name: str, tasks: dict[str, Task], records: dict[str, Columns]) -> Group:
    """A group with every figure that its tasks here have records of; empty where it pools nothing.

    A results file does not say whether a group weights its tasks by their rows: the figure that it states does. One that is neither mean
    is shown as stated, without interval.
    """
    members = tuple(_members(_mapping(raw.get("group_subtasks")), name))
    figures = []
    for metric, stated in _figures(path, name, raw["results"][name]).items():
        holders = [task for task in members if task in tasks and (metric == tasks[task].metric or metric in records[task])]
        if metric in (*COMPANIONS, "samples") or not holders:
            continue
        parts = [_clustered(task, records[task].get(metric, [])) for task in holders]
        over = f"over {', '.join(holders)}" if len(holders) <= NAMED_TASKS else f"over {len(holders)} tasks"
        if (points := [record for part in parts for record in part]) and all("p" in record for record in points):  # an AUROC's
            used = sum(record["p"] is not None and record["label"] in (0, 1) for record in points)
            between = _mapping(raw["results"][name].get(f"{metric.replace('auroc', 'interval')},none"))  # only the run can say
            area = Rate(len(points), used, stated, between.get("low"), between.get("high"), None, None)
            figures.append(Figure(metric, area, _higher(raw, holders[0], metric), over, is_share=False))
            continue
        means = [mean_of(parts, weights) for weights in ([float(len(part)) for part in parts], [1.0] * len(parts)) if all(parts)]
        rate = next((r for r in means if _agree(r.value, stated)), None)
        shown = means[:1] or [tasks[task].rate for task in holders]
        n, n_scored = sum(r.n for r in shown), sum(r.n_scored for r in shown)
        kept = rate or Rate(n, n_scored, stated, None, None, None, None)
        figures.append(Figure(metric, kept, _higher(raw, holders[0], metric), over))
    return Group(name, members, tuple(figures))


def _agree(found: float | None, stated: float | None) -> bool:
    return found is stated if found is None or stated is None else abs(found - stated) < ROUNDED


def _members(subtasks: dict[str, Any], group: str) -> Iterator[str]:
    """The tasks of a group, those of groups inside it included."""
    for name in subtasks.get(group) or ():
        if subtasks.get(name):
            yield from _members(subtasks, name)
        else:
            yield name


def _text(value: Any) -> str:
    """A logged field as text: lmms-eval writes a string, or a list of one."""
    if isinstance(value, list):
        return "\n".join(_text(part) for part in value)
    return "" if value is None else str(value)


def rate_of(samples: Iterable[Sample]) -> Rate:
    """The rate of these rows, rows of one video counted as one cluster."""
    return metrics.rate_of([sample.record for sample in samples])


def pooled(tasks: Sequence[Task]) -> Rate:
    """The main figure of several tasks of one metric together, weighted by their rows as groups are; without sample logs no interval."""
    if len(tasks) == 1:
        return tasks[0].rate
    if all(task.samples for task in tasks):
        parts = [_clustered(task.name, [sample.record for sample in task.samples or ()]) for task in tasks]
        return mean_of(parts, [float(len(part)) for part in parts])
    sizes = [task.rate.n for task in tasks]
    value, low, high = (
        metrics.pooled([getattr(task.rate, part) for task in tasks], sizes) for part in ("value", "bound_low", "bound_high")
    )
    return Rate(sum(sizes), sum(task.rate.n_scored for task in tasks), value, None, None, low, high)


def _clustered(task: str, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with their cluster: rows of one video are one across the tasks of a set; rows of two sets with the same id are not."""
    return [record | {"cluster": (task.partition("_")[0], record["video_id"])} if record.get("video_id") else record for record in records]


def _newest_only(runs: list[Run]) -> list[Run]:
    """Leaves each task of one model, with the same arguments and judge, to its newest run."""
    kept = list(runs)
    order = sorted(range(len(runs)), key=lambda i: runs[i].date)
    for position, older in enumerate(order):
        for newer in order[position + 1 :]:
            if _identity(runs[older]) != _identity(runs[newer]):
                continue
            shared = [name for name in kept[older].tasks | kept[older].other if name in runs[newer].tasks or name in runs[newer].other]
            if not shared:
                continue
            names = ", ".join(shared)
            old, new = runs[older].path.name, runs[newer].path.name
            kept[older] = replace(
                kept[older],
                tasks={n: t for n, t in kept[older].tasks.items() if n not in shared},
                other={n: o for n, o in kept[older].other.items() if n not in shared},
                groups=tuple(group for group in kept[older].groups if not set(group.tasks) & set(shared)),
                remarks=(*kept[older].remarks, f"{names}: left out here, {new} is a newer run of the same model."),
            )
            kept[newer] = replace(kept[newer], remarks=(*kept[newer].remarks, f"{names}: used instead of the older run {old}."))
    return kept


def _identity(run: Run) -> tuple[str, str, tuple[str, ...]]:
    return run.model, json.dumps([run.config.get("model"), run.config.get("model_args")], sort_keys=True, default=str), tuple(run.judges)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
