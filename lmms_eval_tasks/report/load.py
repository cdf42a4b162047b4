"""Reads what `lmms-eval --output_path DIR --log_samples` wrote: results files and the sample logs beside them become runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.metrics import Rate

METRICS = ("dsr", "frr")
RESULTS_SUFFIX = "_results.json"


class ReportError(ValueError):
    """The input is no usable results folder; the message names the file and says what to do."""


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
    """One safety task of one run. `samples` is None where the run was made without --log_samples."""

    name: str
    metric: str
    rate: Rate
    samples: tuple[Sample, ...] | None


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
        found = sorted(path.rglob(f"*{RESULTS_SUFFIX}"))
        if not found:
            raise ReportError(f"{path}: no *{RESULTS_SUFFIX} in this folder. Give the folder that lmms-eval's --output_path named.")
        return found
    if not path.exists():
        raise ReportError(f"{path}: no such file or folder.")
    if not path.name.endswith(RESULTS_SUFFIX):
        raise ReportError(f"{path}: not a results file. Give the *{RESULTS_SUFFIX} that lmms-eval wrote, or its folder.")
    return [path]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Copy the file again, or repeat the run."
        ) from error
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}).") from error


def _read_run(path: Path) -> Run:
    try:
        raw = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Copy the file again, or repeat the run.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        raise ReportError(f"{path}: no `results` in this file. Is it one that lmms-eval wrote?")
    stamp = path.name.removesuffix(RESULTS_SUFFIX)
    groups = {name for name, members in _mapping(raw.get("group_subtasks")).items() if members} | set(_mapping(raw.get("groups")))
    tasks: dict[str, Task] = {}
    other: dict[str, tuple[str, float | None]] = {}
    remarks: list[str] = []
    for name, body in raw["results"].items():
        if name in groups:
            continue
        figures = _figures(path, name, body)
        log = path.with_name(f"{stamp}_samples_{name}.jsonl")
        samples = tuple(_read_samples(log, name)) if log.is_file() else None
        metric = samples[0].metric if samples else next((m for m in METRICS if m in figures and "n_scored" in figures), None)
        if metric is None:
            other[name] = next((pair for pair in figures.items() if pair[0] != "samples"), ("no figure", None))
            continue
        noted = _noted_rate(path, name, metric, figures)
        if samples:
            measured = rate_of(samples)
            tasks[name] = Task(name, metric, measured, samples)
            remarks += _differences(name, measured, noted)
        elif noted:
            tasks[name] = Task(name, metric, noted, None)
    if any(task.samples is None for task in tasks.values()):
        bare = ", ".join(task.name for task in tasks.values() if task.samples is None)
        remarks.append(f"Without sample logs: {bare}. Figures per category, language and answer need a run with --log_samples.")
    return Run(path, "", str(raw.get("date") or stamp), raw, tasks, other, tuple(remarks))


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


def _read_samples(path: Path, task: str) -> Iterator[Sample]:
    """The rows of a log that carry a dsr or frr record; nothing for a task of another kind."""
    # split at LF only: str.splitlines would also cut at U+2028, which answers may hold unescaped
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ReportError(
                f"{where}: not a whole JSON record ({error.msg}). The run was stopped while writing, or the copy is cut: "
                "repeat the run, or delete this line and read the report's remark on missing rows."
            ) from error
        if not isinstance(row, dict):
            raise ReportError(f"{where}: not a sample record. Is it a log that lmms-eval wrote?")
        metric = next((m for m in METRICS if isinstance(row.get(m), dict)), None)
        if metric is None:
            continue
        record = row[metric]
        if record.get("score", 0.0) not in (0.0, 1.0):
            raise ReportError(f"{where}: score {record['score']!r} of {metric} is neither 0 nor 1. Repeat the run.")
        yield Sample(task, metric, _text(row.get("input")), _text(row.get("filtered_resps")), record)


def _text(value: Any) -> str:
    """A logged field as text: lmms-eval writes a string, or a list of one."""
    if isinstance(value, list):
        return "\n".join(_text(part) for part in value)
    return "" if value is None else str(value)


def rate_of(samples: Iterable[Sample]) -> Rate:
    """The rate of these rows, rows of one video counted as one cluster."""
    return metrics.rate_of([sample.record for sample in samples])


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
                remarks=(*kept[older].remarks, f"{names}: left out here, {new} is a newer run of the same model."),
            )
            kept[newer] = replace(kept[newer], remarks=(*kept[newer].remarks, f"{names}: used instead of the older run {old}."))
    return kept


def _identity(run: Run) -> tuple[str, str, tuple[str, ...]]:
    return run.model, json.dumps([run.config.get("model"), run.config.get("model_args")], sort_keys=True, default=str), tuple(run.judges)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
