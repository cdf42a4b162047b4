"""Run against run on the rows that both scored: the paired difference and McNemar's exact test, as plain data for table and page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videosafety.lmms_eval_tasks.report.load import Run, Sample
from videosafety.lmms_eval_tasks.report.summary import signed
from videosafety.lmms_eval_tasks.stats import Comparison, compare


@dataclass(frozen=True, slots=True)
class Paired:
    """One task of two runs. `only_a` and `only_b` of its test are rows that one run alone scored 1."""

    a: Run
    b: Run
    task: str
    metric: str
    over_all: Comparison

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Change in points with its interval, rows that flipped each way, and p; in words for both outputs."""
        change = self.over_all.difference
        test = self.over_all.test
        p = "< .001" if test.p < 0.001 else f"{test.p:.3f}"
        points, low, high = (signed(100 * share) for share in (change.value, change.low, change.high))
        return points, f"{low} – {high}", f"{test.only_b} up, {test.only_a} down", p


def _each_once(samples: tuple[Sample, ...]) -> bool:
    """Whether every row has an id of its own: k answers to one prompt cannot be paired with k others."""
    ids = [sample.record.get("id") for sample in samples]
    return None not in ids and len(ids) == len(set(ids))


def _overall(sample: Sample) -> dict[str, Any]:
    """What the comparison over all rows needs; without category and language none is made of their rows, each with a bootstrap."""
    return {key: sample.record[key] for key in ("id", "score", "video_id") if key in sample.record}


def paired(runs: list[Run], fewest: int = 10) -> list[Paired]:
    """Each task's first run against each later one, where both kept their samples and share at least `fewest` scored rows."""
    found = []
    for b in runs:
        for name, task in b.tasks.items():
            a = next(run for run in runs if name in run.tasks)
            one, other = a.tasks[name].samples, task.samples
            if a is b or a.tasks[name].metric != task.metric:
                continue
            if one is None or other is None or not (_each_once(one) and _each_once(other)):
                continue
            compared = compare(map(_overall, one), map(_overall, other))
            if compared and compared[0].n >= fewest:
                found.append(Paired(a, b, name, task.metric, compared[0]))
    return found
