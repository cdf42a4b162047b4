"""How far judges agree: Cohen's kappa, Krippendorff's alpha, the confusion with human labels, and the rows on which a panel differs.

Pure functions. A label is anything hashable, None means that there is none. A figure that is not defined (no common rows, one label
only) is None, never 0 or 1.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from .verdict import Verdict

Labels = Sequence[Hashable | None]


@dataclass(frozen=True, slots=True)
class Kappa:
    """Agreement of two judges beyond chance over the `n` rows on which both have a label; 1 = perfect, 0 = chance, None = undefined."""

    kappa: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of what a judge said against the truth, over rows where both are known. Rates lie in [0, 1], or are None without rows."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def n(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float | None:
        return _share(self.tp + self.tn, self.n)

    @property
    def tpr(self) -> float | None:
        """Share of the truly positive rows that the judge calls positive."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def tnr(self) -> float | None:
        """Share of the truly negative rows that the judge calls negative."""
        return _share(self.tn, self.tn + self.fp)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One row on which the members of a panel differ: its index and each member's label (unscored ones included)."""

    row: int
    votes: dict[str, str]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def cohen_kappa(first: Labels, second: Labels) -> Kappa:
    """Cohen's unweighted kappa of two judges of the same rows; rows that either left without a label do not count.

    Raises:
        ValueError: the two do not have the same number of rows.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    n = len(pairs)
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(left[label] * right[label] for label in left)  # in units of n², so that the comparison below is exact
    if by_chance == n * n:
        return Kappa(None, n)
    agreed = sum(a == b for a, b in pairs)
    return Kappa((agreed * n - by_chance) / (n * n - by_chance), n)


def pairwise_kappa(judges: Mapping[str, Labels]) -> dict[tuple[str, str], Kappa]:
    """Cohen's kappa of every two judges, in the order given. Raises ValueError as `cohen_kappa` does."""
    return {(a, b): cohen_kappa(judges[a], judges[b]) for a, b in combinations(judges, 2)}


def krippendorff_alpha(judges: Sequence[Labels]) -> float | None:
    """Krippendorff's alpha for nominal labels; any label may be missing, a row with fewer than two labels says nothing and is left out.

    Returns:
        1 = perfect, 0 = chance, below 0 = worse; None where no row has two labels, or all labels are one and the same.

    Raises:
        ValueError: the judges do not have the same number of rows.
    """
    coincidences: defaultdict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for row in zip(*judges, strict=True):
        labels = [label for label in row if label is not None]
        for pair in permutations(labels, 2):
            coincidences[pair] += 1 / (len(labels) - 1)
    totals: defaultdict[Hashable, float] = defaultdict(float)
    for (label, _), count in coincidences.items():
        totals[label] += count
    n = sum(totals.values())
    if len(totals) < 2:
        return None
    observed = sum(count for (a, b), count in coincidences.items() if a != b)
    by_chance = sum(totals[a] * totals[b] for a, b in permutations(totals, 2)) / (n - 1)
    return 1 - observed / by_chance


def confusion(truth: Labels, judged: Labels, positive: Hashable) -> Confusion:
    """Count a judge's labels against the truth; every label other than `positive` is negative, rows with None on either side are left out.

    Raises:
        ValueError: the two do not have the same number of rows.
    """
    cells = Counter((a == positive, b == positive) for a, b in zip(truth, judged, strict=True) if a is not None and b is not None)
    return Confusion(tp=cells[True, True], fp=cells[False, True], tn=cells[False, False], fn=cells[True, False])


def member_votes(verdict: Verdict) -> dict[str, dict]:
    """What each member of a panel said, from the panel's verdict: judge id -> label, reason, stance, p_unsafe, detail.

    Empty for a verdict that no member was asked for (an empty answer, a failed generation).

    Raises:
        ValueError: the verdict is not a panel's.
    """
    if not verdict.judge.startswith("panel:"):
        raise ValueError(f"not a panel's verdict, but one of {verdict.judge or 'no judge'!r}")
    return json.loads(verdict.raw) if verdict.raw else {}


def votes(verdict: Verdict) -> dict[str, str]:
    """Each member's label, "unscored" included, from a panel's verdict; empty and raising as `member_votes`."""
    return {name: vote["label"] for name, vote in member_votes(verdict).items()}


def disagreements(verdicts: Iterable[Verdict]) -> list[Disagreement]:
    """The rows of a panel's verdicts on which the members that have a verdict differ. Raises ValueError as `member_votes` does."""
    rows = []
    for row, verdict in enumerate(verdicts):
        said = votes(verdict)
        if len(set(said.values()) - {"unscored"}) > 1:
            rows.append(Disagreement(row, said))
    return rows


def panel_labels(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Each member's labels over rows of `votes`, None where it has none: what the functions above take."""
    members = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [None if row.get(name) == "unscored" else row.get(name) for row in rows] for name in members}


def panel_agreement(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """How far a panel's members agree over rows of `votes`, as it stands in results.

    Returns:
        `alpha`: Krippendorff's; `kappa`: Cohen's, by "one member / another"; None where undefined. `n`: rows on which at least two
        members have a label.
    """
    labels = panel_labels(rows)
    return {
        "alpha": krippendorff_alpha(list(labels.values())),
        "kappa": {f"{a} / {b}": kappa.kappa for (a, b), kappa in pairwise_kappa(labels).items()},
        "n": sum(len([label for label in row.values() if label != "unscored"]) >= 2 for row in rows),
    }
