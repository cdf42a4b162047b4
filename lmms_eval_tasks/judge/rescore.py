"""Judge the answers of a finished lmms-eval run again, from its logs, without a model: a run of the same shape, and what flipped."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isclose
from pathlib import Path
from typing import Any

from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.alarm import GUARDED_INTERVAL, guarded_interval, with_interval
from videosafety.lmms_eval_tasks.judge import Item, Judge, Verdict, get_judge, judge_facts
from videosafety.lmms_eval_tasks.judge.batch import judge_all
from videosafety.lmms_eval_tasks.judge.policy import policy, policy_hash
from videosafety.lmms_eval_tasks.logs import METRICS, RESULTS, SAMPLES, find_samples, metric_of, read_results, read_samples, task_of
from videosafety.lmms_eval_tasks.logs import LogError as RescoreError
from videosafety.lmms_eval_tasks.metrics import GUARDED, PANEL, RECORD_KEYS, SUMMARIES, Rate
from videosafety.lmms_eval_tasks.prompted import bare
from videosafety.lmms_eval_tasks.report.board import RULE

FLIPS = "_flips.jsonl"
BY_CATEGORY = ("scenario_mean",)  # metrics that average the same verdicts by category
ALARM = "alarm_"  # how the names of an alarm's own metrics begin
BY_TASK = ("configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes")  # parts of a results file with an entry a task


@dataclass(frozen=True, slots=True)
class Change:
    """One task before and after. `flipped` counts rows whose verdict changed, among those that both judges scored."""

    task: str
    metric: str
    before: Rate
    after: Rate
    flipped: int
    newly_scored: int
    newly_unscored: int


@dataclass(frozen=True, slots=True)
class Rescored:
    """What `rescore` wrote: the folder, one change a task, and sentences for the reader."""

    out: Path
    judge: str
    changes: tuple[Change, ...]
    remarks: tuple[str, ...]

    @property
    def summary(self) -> str:
        flipped, rows = sum(c.flipped for c in self.changes), sum(c.after.n for c in self.changes)
        gained, lost = sum(c.newly_scored for c in self.changes), sum(c.newly_unscored for c in self.changes)
        return (
            f"{self.judge}: {flipped} of {rows} rows flipped, {gained} newly scored, {lost} newly unscored. "
            f"Written to {self.out}; to see it: videosafety report {self.out}"
        )


@dataclass(slots=True)
class _Log:
    """One sample log: its rows as logged, and the metric whose records they carry."""

    task: str
    metric: str
    rows: list[dict[str, Any]]

    def items(self) -> list[Item]:
        return [_item(row, row[self.metric]) for row in self.rows]

    def stale(self) -> list[str]:
        """The old judge's metrics that are not made anew: grades, RJScores, rates of a task's own. A rule's and an alarm's are none."""
        records = {name: value for row in self.rows for name, value in row.items() if isinstance(value, dict)}
        anew = {self.metric, "unscored", PANEL, *SUMMARIES, *BY_CATEGORY, *GUARDED.values(), GUARDED_INTERVAL}
        made = [name for name, record in records.items() if name not in anew and record.keys() & {"judge", "video_id"}]
        return [name for name in made if records[name].get("judge") != RULE and not name.startswith(ALARM)]


def rescore(samples: Path, spec: str, out: Path | None = None) -> Rescored:
    """Judge every safety answer that a run logged again, all tasks at once, and write the run anew.

    Logs hold no videos or images: a judge that sees gets the words alone. The old judge's figures that are not made anew (grades, RJScores)
    are left out, with a remark.

    Args:
        samples: a folder with runs, one *_results.json, or one *_samples_*.jsonl.
        spec: the judge, as for VIDEOSAFETY_JUDGE.
        out: the folder to write to, by default `rescored-<judge>` beside the logs. Files keep their names and their place in it; beside
            each run stands *_flips.jsonl, one line a row whose verdict changed.

    Raises:
        RescoreError: nothing there to judge, a log that is not whole, or `out` is where the logs are.
        ValueError: no such judge.
    """
    judge = get_judge(spec)
    root = samples if samples.is_dir() else samples.parent
    target = out or root / f"rescored-{_slug(spec)}"
    if target.resolve() == root.resolve():
        raise RescoreError(f"{target}: the logs are here. Choose another folder for --out.")
    runs = _runs(samples, target)
    remarks: list[str] = []
    read = [(run, [log for log in map(_read, logs) if log.metric]) for run, logs in runs.items()]
    verdicts = iter(judge_all(judge, [item for _, logs in read for log in logs for item in log.items()]))
    changes: list[Change] = []
    for (folder, stamp), logs in read:
        if not logs:
            continue
        place = target / folder.relative_to(root)
        place.mkdir(parents=True, exist_ok=True)
        flips: list[dict[str, Any]] = []
        anew = [_judged_anew(log, [next(verdicts) for _ in log.rows]) for log in logs]
        for old, new in zip(logs, anew, strict=True):
            changes.append(_change(old, new))
            flips += _flips(old, new)
            _write_lines(place / f"{stamp}{SAMPLES}{new.task}.jsonl", new.rows)
        results = folder / f"{stamp}{RESULTS}"
        raw = read_results(results) if results.is_file() else {}
        left_out = sorted(set(raw.get("configs", {})) - {log.task for log in logs})
        if left_out:
            remarks.append(f"{stamp}: left out, without dsr or frr rows in a sample log: {', '.join(left_out)}")
        stale = {log.task: log.stale() for log in logs}
        remarks += [f"{stamp}: {task} without {', '.join(names)}: the old judge's" for task, names in stale.items() if names]
        written, lost = _results_anew(raw, anew, stale, spec, judge)
        remarks += [
            f"{stamp}: no figure for the group {name}: its tasks are not all here, or it is not pooled as ours are" for name in lost
        ]
        written["rescored"]["from"] = results.name if raw else None
        _write(place / results.name, json.dumps(written, ensure_ascii=False, indent=2))
        _write_lines(place / f"{stamp}{FLIPS}", flips)
    if not changes:
        raise RescoreError(f"{samples}: no row with a dsr or frr record. Was the run made with our tasks and --log_samples?")
    return Rescored(target, judge.id, tuple(changes), tuple(remarks))


def _slug(spec: str) -> str:
    """A judge's spec as a folder's name, without the user and password that a server's address may hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"//[^/#]*@", "//", spec)).strip("-")


# --- reading --------------------------------------------------------------------------------------------------------------------------


def _runs(samples: Path, target: Path) -> dict[tuple[Path, str], list[Path]]:
    """The sample logs of each run; without what an earlier rescore wrote, unless there is nothing else."""
    found = find_samples(samples)
    runs = {run: logs for run, logs in found.items() if target != run[0] and target not in run[0].parents}
    if not runs:
        raise RescoreError(f"{samples}: all sample logs are in {target}, where this would write. Choose another folder for --out.")
    first_hand = {run: logs for run, logs in runs.items() if not (run[0] / f"{run[1]}{FLIPS}").exists()}
    return first_hand or runs


def _read(path: Path) -> _Log:
    """One sample log. Its metric is "" where no row carries a record of ours."""
    found = list(read_samples(path))
    metric = (metric_of(found[0][1]) if found else None) or ""
    for where, row in found:
        if metric and not (isinstance(row.get(metric), dict) and "filtered_resps" in row):
            raise RescoreError(f"{where}: no {metric} record, or no answer. The log is not whole: repeat the run.")
    return _Log(task_of(path), metric, [row for _, row in found])


def _first(value: Any) -> str:
    """A logged field as text: lmms-eval writes a string, or lists of them, of which our tasks judge the first."""
    while isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def _item(row: dict[str, Any], record: dict[str, Any]) -> Item:
    """What the judge is shown: as in `metrics.judged`, with `request` (what an image asks for) before the prompt.

    The instruction of the `_prompted` tasks is part of the prompt and not of what is asked for.
    """
    query = bare(_first(row.get("input"))) if record.get("request") is None else _first(record["request"])
    return Item(query, _first(row["filtered_resps"]), record.get("category"), record.get("language"))


# --- judging anew ---------------------------------------------------------------------------------------------------------------------


def _judged_anew(log: _Log, verdicts: Sequence[Verdict]) -> _Log:
    stale = log.stale()

    def anew(row: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
        doc = {key: row[log.metric][key] for key in RECORD_KEYS if key in row[log.metric]}
        kept = {key: value for key, value in row.items() if key not in (PANEL, *stale)}
        fresh = metrics.records_of(log.metric, doc, verdict, tuple(name for name in (*BY_CATEGORY, *GUARDED.values()) if name in row))
        return kept | (with_interval(log.metric, fresh) if GUARDED_INTERVAL in row else fresh)

    return _Log(log.task, log.metric, [anew(row, verdict) for row, verdict in zip(log.rows, verdicts, strict=True)])


def _change(old: _Log, new: _Log) -> Change:
    before, after = ([row[log.metric] for row in log.rows] for log in (old, new))
    pairs = [(a.get("score"), b.get("score")) for a, b in zip(before, after, strict=True)]
    return Change(
        new.task,
        new.metric,
        metrics.rate_of(before),
        metrics.rate_of(after),
        flipped=sum(None not in (a, b) and a != b for a, b in pairs),
        newly_scored=sum(a is None and b is not None for a, b in pairs),
        newly_unscored=sum(a is not None and b is None for a, b in pairs),
    )


def _flips(old: _Log, new: _Log) -> Iterable[dict[str, Any]]:
    """One line a row whose verdict is another now, unscored ones included."""
    for before, after in zip(old.rows, new.rows, strict=True):
        a, b = before[old.metric], after[new.metric]
        if a.get("verdict") != b["verdict"]:
            row = {"task": new.task, "doc_id": before.get("doc_id"), "id": b.get("id"), "old": a.get("verdict"), "new": b["verdict"]}
            yield row | {f"{age}_{key}": r.get(key) for age, r in (("old", a), ("new", b)) for key in ("reason", "judge")}


def _figures(log: _Log) -> dict[str, Any]:
    """Every figure of ours that a results file holds for a task: the rate, `unscored`, n, interval, bounds, and how far a panel agrees."""
    columns = {name: [row[name] for row in log.rows] for name in (log.metric, "unscored", *SUMMARIES)}
    shares = {name: metrics.share(columns[name]) for name in (log.metric, "unscored")}
    shares |= {name: metrics.category_mean([row[name] for row in log.rows]) for name in BY_CATEGORY if all(name in row for row in log.rows)}
    shares |= {name: metrics.share([row[name] for row in log.rows]) for name in GUARDED.values() if all(name in row for row in log.rows)}
    panel = [row[PANEL] for row in log.rows if PANEL in row]
    told: dict[str, Any] = {PANEL: metrics.panel_agreement(panel)} if panel else {}
    if all(GUARDED_INTERVAL in row for row in log.rows):
        told[GUARDED_INTERVAL] = guarded_interval([row[GUARDED_INTERVAL] for row in log.rows])
    return shares | {name: getattr(metrics, name)(columns[name]) for name in SUMMARIES} | told


def _results_anew(
    raw: dict[str, Any], logs: Sequence[_Log], stale: Mapping[str, Sequence[str]], spec: str, judge: Judge
) -> tuple[dict[str, Any], list[str]]:
    """A results file of the tasks judged anew, and the groups that it has no figure for. stale: by task, as `_Log.stale` says.

    Model, data, settings and date stay those of the run that made the answers; judge and policy are those of now.
    """
    results = {log.task: _body(raw.get("results", {}).get(log.task, {}), _figures(log), stale[log.task]) for log in logs}
    sizes = {log.task: len(log.rows) for log in logs}
    subtasks = raw.get("group_subtasks", {})
    groups: dict[str, dict[str, Any]] = {}
    lost = []
    for name, body in raw.get("groups", {}).items():
        members = _members(name, subtasks)
        whole = bool(members) and all(member in results for member in members)
        gone = {PANEL, *BY_CATEGORY, *(name for member in members for name in stale.get(member, ()))}
        pooled = _pooled(_without(body, gone), raw["results"], results, sizes, members) if whole else None
        if pooled is None:
            lost.append(name)
        else:
            groups[name] = pooled
    kept = {*results, *groups}
    # `efficiency` counts answers that the other judge found right
    written = copy.deepcopy({key: value for key, value in raw.items() if key != "efficiency"})
    written |= {"results": results | groups, "groups": groups, "group_subtasks": {g: subtasks[g] for g in subtasks if g in kept}}
    written |= {part: {name: entry for name, entry in written[part].items() if name in kept} for part in BY_TASK if part in written}
    for log in logs:
        config = written.setdefault("configs", {}).setdefault(log.task, {})
        metadata = config["metadata"] = config.get("metadata") or {}
        noted = metadata["run"] = metadata.get("run") or {}
        noted["judge"] = judge_facts(spec, judge)
        noted["policy"] = {"version": policy()["version"], "hash": policy_hash()}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    written["rescored"] = {"judge": spec, "date": now, "videosafety": importlib.metadata.version("videosafety")}
    return written, lost


def _without(body: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A task's or a group's figures without those of some metrics and their standard errors."""
    gone = set(names)
    return {key: value for key, value in body.items() if key.split(",")[0].split("_stderr")[0] not in gone}


def _body(old: dict[str, Any], figures: dict[str, Any], stale: Iterable[str]) -> dict[str, Any]:
    """A task's figures in the keys that lmms-eval gave them ("dsr,none"); what was of the old verdicts alone goes."""
    new = {key: "N/A" if "_stderr" in key else value for key, value in _without(old, (PANEL, *stale)).items()}
    for name, value in figures.items():
        new[next((key for key in old if key.startswith(f"{name},")), f"{name},none")] = value
    return new


def _members(group: str, subtasks: dict[str, list[str]]) -> list[str]:
    """The tasks of a group, those of its subgroups included."""
    return [task for name in subtasks.get(group, []) for task in (_members(name, subtasks) if subtasks.get(name) else [name])]


def _pooled(
    body: dict[str, Any], old: dict[str, Any], new: dict[str, Any], sizes: dict[str, int], members: Sequence[str]
) -> dict[str, Any] | None:
    """A group's figures from its tasks', pooled as they were; None where neither way of pooling gives what the group had.

    A results file does not say whether a group weights its tasks by size: the old figures do.
    """
    found = {key: "N/A" if "_stderr" in key else value for key, value in body.items()}
    for key, value in body.items():
        parts = [task for task in members if key in old.get(task, {})]
        if key.split(",")[0] not in (*METRICS, "unscored", *SUMMARIES, *GUARDED.values()) or not parts:
            continue
        weights = [sizes[task] for task in parts]
        values = [old[task][key] for task in parts]
        by_size = next((w for w in (True, False) if _same(metrics.pooled(values, weights, w), value)), None)
        if by_size is None:
            return None
        found[key] = metrics.pooled([new[task][key] for task in parts], weights, by_size)
    return found


def _same(a: float | None, b: Any) -> bool:
    return a is b if a is None or b is None else isinstance(b, int | float) and isclose(a, b, abs_tol=1e-9)


# --- writing --------------------------------------------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    # a lone surrogate in an answer has no UTF-8; as \udxxx it is the JSON escape that it came as
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", errors="backslashreplace")
