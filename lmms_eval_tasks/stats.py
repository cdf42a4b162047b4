"""Comparisons and intervals: cluster bootstrap, McNemar's exact test of two runs on the same rows. No I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videosafety.lmms_eval_tasks.judge.agreement import Confusion

RESAMPLES = 2000
SEED = 0  # intervals are part of a result, so two looks at the same rows must show the same ones


def percentiles95(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of bootstrap draws."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def cluster_bootstrap(
    scores: Sequence[float],
    clusters: Sequence[Hashable],
    statistic: Callable[[np.ndarray], float] = np.mean,
    n: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """A 95 % percentile interval of `statistic`, resampling whole clusters (the rows of one video) with replacement.

    Args:
        scores: one number a row, at least one row.
        clusters: for each row the name of its cluster.
        statistic: from the scores of a resample, shape (rows,), to a number.
        n: how many resamples.

    Raises:
        ValueError: no rows, or scores and clusters of different length.

    Where all rows agree the interval has no width, however few they are: for a single rate `metrics.rate` is the better choice.
    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), 3.8.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for score, cluster in zip(scores, clusters, strict=True):
        groups[cluster].append(score)
    if not groups:
        raise ValueError("an interval needs at least one row")
    arrays = [np.asarray(group, dtype=float) for group in groups.values()]
    draws = np.random.default_rng(seed).integers(len(arrays), size=(n, len(arrays)))
    return percentiles95(np.array([statistic(np.concatenate([arrays[i] for i in draw])) for draw in draws]))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two verdicts on each of `n` rows: how many rows only a or only b scored 1, and how surprising that is if a equals b."""

    n: int
    only_a: int
    only_b: int
    p: float  # exact and two-sided; 1.0 where no row differs


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar:
    """McNemar's exact test on paired scores of 0 or 1.

    Raises:
        ValueError: sequences of different length, or a score that is neither 0 nor 1.

    Source: Q. McNemar, Psychometrika 12 (1947), with the exact binomial distribution of the rows that differ.
    """
    pairs = list(zip(a, b, strict=True))
    if any(score not in (0, 1) for pair in pairs for score in pair):
        raise ValueError("McNemar's test takes scores of 0 and 1 only; leave unscored rows out")
    only_a = sum(x > y for x, y in pairs)
    only_b = sum(y > x for x, y in pairs)
    return McNemar(len(pairs), only_a, only_b, _binomial_two_sided(min(only_a, only_b), only_a + only_b))


def _binomial_two_sided(k: int, m: int) -> float:
    """Twice the chance of at most `k` heads in `m` tosses of a fair coin, at most 1. In logarithms: 2^-m underflows beyond m = 1074."""
    logs = (math.lgamma(m + 1) - math.lgamma(i + 1) - math.lgamma(m - i + 1) - m * math.log(2) for i in range(k + 1))
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of b minus the mean of a over `n` paired rows, in [-1, 1] for rates, with its 95 % interval."""

    n: int
    value: float
    low: float
    high: float


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], seed: int = SEED) -> Difference:
    """The mean difference b - a of paired rows, with a cluster-bootstrap interval.

    Raises:
        ValueError: no rows, or sequences of different length.
    """
    differences = [y - x for x, y in zip(a, b, strict=True)]
    low, high = cluster_bootstrap(differences, clusters, seed=seed)
    return Difference(len(differences), sum(differences) / len(differences), low, high)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the rows that both have scored: all rows, or those of one category or language.

    `group` is "all", "category" or "language", `name` the category or language and "" for all.
    """

    group: str
    name: str
    rate_a: float
    rate_b: float
    difference: Difference
    test: McNemar

    @property
    def n(self) -> int:
        return self.test.n


def compare(a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]]) -> list[Comparison]:
    """Compare two runs on the records of one task as `metrics.record` makes them, paired by `id`.

    Rows that one run lacks or has not scored are left out of both. First comes the comparison over all rows, then those of each category
    and language (name order); empty where the runs share no scored row. Groups may be small: it is for the caller to print no rate below
    ten rows.

    Raises:
        ValueError: a record without an id, or two of one run with the same.
    """
    scored_a, scored_b = _scored(a), _scored(b)
    shared = [(scored_a[key], scored_b[key]) for key in scored_a if key in scored_b]
    if not shared:
        return []
    found = [_comparison("all", "", shared)]
    for group in ("category", "language"):
        members: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = defaultdict(list)
        for pair in shared:
            if pair[0].get(group):
                members[str(pair[0][group])].append(pair)
        found += [_comparison(group, name, members[name]) for name in sorted(members)]
    return found


def _scored(records: Iterable[Mapping[str, Any]]) -> dict[Hashable, Mapping[str, Any]]:
    found: dict[Hashable, Mapping[str, Any]] = {}
    seen: set[Hashable] = set()
    for record in records:
        if record.get("id") is None:
            raise ValueError("rows can be compared by their id only, and one has none")
        if record["id"] in seen:
            raise ValueError(f"row {record['id']!r} stands twice in one run")
        seen.add(record["id"])
        if record.get("score") is not None:
            found[record["id"]] = record
    return found


def _comparison(group: str, name: str, pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Comparison:
    a, b = [x["score"] for x, _ in pairs], [y["score"] for _, y in pairs]
    clusters = [x.get("video_id") or ("row", i) for i, (x, _) in enumerate(pairs)]
    return Comparison(group, name, sum(a) / len(a), sum(b) / len(b), paired_difference(a, b, clusters), mcnemar(a, b))


def kappa_interval(table: Confusion, n: int = RESAMPLES, seed: int = SEED) -> tuple[float, float] | None:
    """A 95 % bootstrap interval of Cohen's kappa, resampling rows; resamples with one label only have no kappa and are left out.

    None where the table itself has no kappa: no rows, or judge and people both give one and the same label.
    """
    cells = np.array([table.tp, table.fp, table.fn, table.tn], dtype=float)
    if not table.n or np.isnan(_kappa(cells[None])[0]):
        return None
    draws = _kappa(np.random.default_rng(seed).multinomial(table.n, cells / table.n, size=n).astype(float))
    return percentiles95(draws[~np.isnan(draws)])


def _kappa(cells: np.ndarray) -> np.ndarray:
    """Kappa of tables with rows (tp, fp, fn, tn): shape (k, 4) -> (k,), NaN where chance agreement is 1."""
    tp, fp, fn, tn = cells.T
    n = cells.sum(axis=1)
    chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1, ((tp + tn) / n - chance) / (1 - chance), np.nan)
