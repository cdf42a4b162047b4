"""A task's figures beside its main one, and those of groups: what each counts, told from its records and what the results file states."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from videosafety.lmms_eval_tasks import alarm, metrics
from videosafety.lmms_eval_tasks.metrics import Rate

# Print n, interval and bounds of other metrics; no figures of their own.
COMPANIONS = ("unscored", *metrics.SUMMARIES, metrics.PANEL, *alarm.COMPANIONS)
SHARES = ("share", "attack_rate")  # aggregations that give the share of scored rows (Video-SafetyBench's rounds it)
NOT_COUNTED = "not_counted"  # a row that the metric leaves out by what it is, as recall leaves out harmless clips
ROUNDED = 6e-4  # official code rounds its percentages to one place

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure beside a task's main one, or one of a group.

    `rate.value` is None where nothing was scored, or where the figure is not defined (a category or task of it has no verdict). Figures
    that are no share, such as an F1, have no interval; `is_share` says that a value is printed in per cent. `of` says what is averaged
    where that is not all rows of the task. `reason` is the commonest reason of rows without a score, "" where there are none.
    """

    name: str
    rate: Rate
    higher: bool  # whether higher is better
    of: str = ""
    is_share: bool = True
    reason: str = ""


def further(name: str, records: Sequence[Record], stated: float | None, aggregation: str, higher: bool) -> Figure:
    """The figure `name` of a task from its logged records.

    Args:
        records: one a row; `score` or `value` is what the row counts, where it counts as a share.
        stated: the figure in the results file, None for null.
        aggregation: the name of the function that made it, as the results file says; "" where it does not.

    A share is recognised by its aggregation; else by being, to rounding, what the results file states: the share of one category whose
    name the aggregation bears, the mean of all categories, or the share of all rows. Anything else is shown as stated, without interval.
    """
    counted = [record for record in records if record.get("reason") != NOT_COUNTED]
    reasons = Counter(str(record["reason"]) for record in counted if record.get("reason"))
    reason = reasons.most_common(1)[0][0] if reasons else ""
    scores = [score_of(record) for record in counted]
    if {score for score in scores if score is not None} <= {0.0, 1.0}:
        if aggregation in SHARES:
            return Figure(name, metrics.rate_of(counted), higher, reason=reason)
        if aggregation == "category_mean":
            mean, words = category_mean(counted)
            return Figure(name, mean, higher, words, reason=reason)
        if stated is not None and any(score is not None for score in scores):
            for category, rows in _by_category(counted).items():
                if _named_after(aggregation or name, category) and _same(metrics.rate_of(rows), stated):
                    return Figure(name, metrics.rate_of(rows), higher, f"rows of {category}", reason=reason)
            mean, words = category_mean(counted)
            if len({record.get("category") for record in counted}) > 1 and _same(mean, stated):
                return Figure(name, mean, higher, words, reason=reason)
            if _same(metrics.rate_of(counted), stated):
                return Figure(name, metrics.rate_of(counted), higher, reason=reason)
    silent = any("score" in record or "value" in record for record in counted)
    scored = sum(score is not None for score in scores) if silent else sum(not record.get("reason") for record in counted)
    rate = Rate(len(counted), scored, stated if scored else None, None, None, None, None)
    return Figure(name, rate, higher, is_share=False, reason=reason)


def score_of(record: Record) -> float | None:
    """What a row counts in a share; None where it is unscored."""
    return record.get("score", record.get("value"))


def category_mean(records: Sequence[Record]) -> tuple[Rate, str]:
    """The unweighted mean of the categories' shares with its interval, and in words what it averages.

    No value where a category has no scored row, as `metrics.category_mean` has none.
    """
    groups = list(_by_category(records).values())
    bare = sum(metrics.rate_of(group).value is None for group in groups)
    words = f"mean of {len(groups)} categories" + (f", {bare} without a verdict" if bare else "")
    return mean_of(groups, [1.0] * len(groups)), words


def mean_of(parts: Sequence[Sequence[Record]], weights: Sequence[float]) -> Rate:
    """The weighted mean of the shares of `parts`, each the records of some rows; no value where a part has no scored row.

    Interval: Wilson's at the effective number of rows, (Σw)² / Σ(w²/m) with m each part's own effective number (Kish, Survey Sampling,
    1965), and at most that of all rows together, of which some may share a video across parts.
    """
    rates = [metrics.rate_of(part) for part in parts]
    n, n_scored = sum(rate.n for rate in rates), sum(rate.n_scored for rate in rates)
    if not rates or any(rate.value is None for rate in rates):
        return Rate(n, n_scored, None, None, None, None, None)
    total = sum(weights)
    value, low, high = (
        sum(w * float(getattr(rate, part)) for w, rate in zip(weights, rates, strict=True)) / total
        for part in ("value", "bound_low", "bound_high")
    )
    spread = sum(w * w / _effective(part) for w, part in zip(weights, parts, strict=True))
    together = _effective([record for part in parts for record in part])
    # a sum of shares may miss 1 by a rounding error, and Wilson's formula takes no more than 1
    value = min(value, 1.0)
    return Rate(n, n_scored, value, *metrics.wilson(value, min(total**2 / spread, together)), low, min(high, 1.0))


def _effective(records: Sequence[Record]) -> float:
    scored = [(float(score), _cluster(record, i)) for i, record in enumerate(records) if (score := score_of(record)) is not None]
    return metrics.effective_n([score for score, _ in scored], [cluster for _, cluster in scored])


def _cluster(record: Record, row: int) -> Hashable:
    return record.get("cluster") or record.get("video_id") or row


def _by_category(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[str(record.get("category"))].append(record)
    return groups


def _same(rate: Rate, stated: float) -> bool:
    return rate.value is not None and abs(rate.value - stated) < ROUNDED


def _named_after(name: str, category: str) -> bool:
    """Whether a function such as `exaggerated_risk` or `typical_parity` bears the name of the category "Exaggerated Risk" or "typical"."""
    plain, short = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (category, name))
    return bool(plain) and (plain.startswith(short) or short.startswith(plain))
