"""Run against run on the rows that both scored: the paired difference and McNemar's exact test, as plain data for table and page."""

from __future__ import annotations

from dataclasses import dataclass

from videosafety.lmms_eval_tasks.report.load import Run, Sample
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
        points = f"{100 * change.value:+.1f}".replace("-", "−")
        interval = f"{100 * change.low:+.1f} – {100 * change.high:+.1f}".replace("-", "−")
        test = self.over_all.test
        return points, interval, f"{test.only_b} up, {test.only_a} down", "< .001" if test.p < 0.001 else f"{test.p:.3f}"


def _each_once(samples: tuple[Sample, ...]) -> bool:
    """Whether every row has an id of its own: k answers to one prompt cannot be paired with k others."""
    ids = [sample.record.get("id") for sample in samples]
    return None not in ids and len(ids) == len(set(ids))


def paired(runs: list[Run], fewest: int = 10) -> list[Paired]:
    """The first run against each later one, task by task, where both kept their samples and share at least `fewest` scored rows."""
    found = []
    for b in runs[1:]:
        a = runs[0]
        for name in a.tasks:
            if name not in b.tasks:
                continue
            one, other = a.tasks[name].samples, b.tasks[name].samples
            if one is None or other is None or not (_each_once(one) and _each_once(other)):
                continue
            compared = compare([s.record for s in one], [s.record for s in other])
            if compared and compared[0].n >= fewest:
                found.append(Paired(a, b, name, a.tasks[name].metric, compared[0]))
    return found
