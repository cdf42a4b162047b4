"""Statistics against hand values and scipy: bootstrap, McNemar, paired differences, two runs side by side, the interval of kappa."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from videosafety.lmms_eval_tasks.judge.agreement import Confusion
from videosafety.lmms_eval_tasks.metrics import wilson
from videosafety.lmms_eval_tasks.stats import cluster_bootstrap, compare, kappa_interval, mcnemar, paired_difference

bits = st.sampled_from([0.0, 1.0])
pairs = st.lists(st.tuples(bits, bits), min_size=1, max_size=40)


# --- cluster bootstrap --------------------------------------------------------------------------------------------------------------


def test_the_interval_of_independent_rows_is_about_wilsons() -> None:
    scores = [1.0] * 150 + [0.0] * 50
    low, high = cluster_bootstrap(scores, range(200))
    assert (low, high) == pytest.approx(wilson(0.75, 200), abs=0.015)


def test_rows_of_one_video_count_as_one() -> None:
    """Ten copies of each row, known as one cluster, give the interval of the single rows."""
    scores = [1.0] * 15 + [0.0] * 25
    alone = cluster_bootstrap(scores, range(40))
    together = cluster_bootstrap([s for s in scores for _ in range(10)], [k for k in range(40) for _ in range(10)])
    ignored = cluster_bootstrap([s for s in scores for _ in range(10)], range(400))
    assert together == pytest.approx(alone)
    assert ignored[1] - ignored[0] < 0.5 * (alone[1] - alone[0])


def test_two_clusters_by_hand() -> None:
    """Of two clusters a resample takes both, or one twice: means 0, 1/4 (1 of 4 rows) and 1, with chances 1/4, 1/2 and 1/4."""
    assert cluster_bootstrap([1.0, 0.0, 0.0, 0.0], "abbb") == (0.0, 1.0)


def test_any_statistic_will_do() -> None:
    low, high = cluster_bootstrap([1.0, 2.0, 3.0, 100.0], range(4), statistic=np.median)
    assert 1.0 <= low < high <= 100.0


@given(st.lists(st.tuples(bits, st.integers(0, 5)), min_size=1, max_size=30))
def test_an_interval_is_ordered_within_range_and_the_same_twice(rows: list[tuple[float, int]]) -> None:
    scores, clusters = [s for s, _ in rows], [k for _, k in rows]
    low, high = cluster_bootstrap(scores, clusters, n=100)
    assert 0.0 <= low <= high <= 1.0
    assert (low, high) == cluster_bootstrap(scores, clusters, n=100)


def test_what_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        cluster_bootstrap([], [])
    with pytest.raises(ValueError):
        cluster_bootstrap([1.0, 0.0], ["a"])


# --- McNemar ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        pytest.param(0, 0, 1.0, id="no row differs"),
        pytest.param(1, 0, 1.0, id="one row says nothing"),
        pytest.param(0, 5, 2 / 32, id="five to none"),
        pytest.param(0, 6, 2 / 64, id="six to none"),
        pytest.param(1, 8, 2 * (1 + 9) / 512, id="eight to one"),
        pytest.param(7, 7, 1.0, id="as many each way"),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    a = [1] * only_a + [0] * only_b + [1, 1, 0]
    b = [0] * only_a + [1] * only_b + [1, 1, 0]
    found = mcnemar(a, b)
    assert (found.n, found.only_a, found.only_b) == (only_a + only_b + 3, only_a, only_b)
    assert found.p == pytest.approx(p)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 11), (40, 60), (700, 800), (4000, 4200), (0, 2000)])
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    found = mcnemar([1] * only_a + [0] * only_b, [0] * only_a + [1] * only_b)
    assert found.p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, rel=1e-6, abs=1e-300)


@given(pairs)
def test_mcnemar_is_symmetric_and_a_probability(rows: list[tuple[float, float]]) -> None:
    there, back = mcnemar([a for a, _ in rows], [b for _, b in rows]), mcnemar([b for _, b in rows], [a for a, _ in rows])
    assert there.p == back.p
    assert 0.0 < there.p <= 1.0
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)


@pytest.mark.parametrize(("a", "b"), [([1, 0], [1]), ([0.5], [1]), ([None], [1])], ids=["lengths", "no verdict", "unscored"])
def test_what_mcnemar_refuses(a: list, b: list) -> None:
    with pytest.raises(ValueError):
        mcnemar(a, b)


# --- paired difference --------------------------------------------------------------------------------------------------------------


def test_paired_difference_by_hand() -> None:
    found = paired_difference([0, 0, 1, 1], [1, 1, 1, 0], "abcd")
    assert (found.n, found.value) == (4, 0.25)
    assert -1 <= found.low < 0.25 < found.high <= 1


@given(pairs)
def test_runs_that_agree_differ_by_nothing(rows: list[tuple[float, float]]) -> None:
    a = [x for x, _ in rows]
    found = paired_difference(a, a, range(len(a)))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_pairing_narrows_the_interval() -> None:
    a = [float(i % 2) for i in range(100)]
    b = [1.0 if i < 10 else x for i, x in enumerate(a)]
    paired = paired_difference(a, b, range(100))
    shuffled = paired_difference(a, sorted(b), range(100))
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


# --- two runs -----------------------------------------------------------------------------------------------------------------------


def record(name: str, score: float | None, category: str = "weapons", language: str = "en") -> dict[str, Any]:
    row = {"id": name, "category": category, "language": language, "video_id": f"video-{name}"}
    return row if score is None else row | {"score": score}


def test_two_runs_are_compared_on_the_rows_that_both_have_scored() -> None:
    a = [record("1", 1.0), record("2", 0.0), record("3", None), record("4", 1.0, "theft", "de"), record("only in a", 1.0)]
    b = [record("4", 0.0, "theft", "de"), record("1", 1.0), record("2", 1.0), record("3", 1.0), record("only in b", 0.0)]
    found = {(c.group, c.name): c for c in compare(a, b)}
    assert list(found) == [("all", ""), ("category", "theft"), ("category", "weapons"), ("language", "de"), ("language", "en")]
    whole = found["all", ""]
    assert (whole.n, whole.test.only_a, whole.test.only_b) == (3, 1, 1)
    assert (whole.rate_a, whole.rate_b, whole.difference.value) == pytest.approx((2 / 3, 2 / 3, 0.0))
    assert found["category", "weapons"].difference.value == 0.5
    assert found["language", "de"].n == 1


def test_runs_without_a_common_scored_row_give_no_comparison() -> None:
    assert compare([record("1", 1.0)], [record("2", 1.0)]) == []
    assert compare([record("1", None)], [record("1", 1.0)]) == []
    assert compare([], []) == []


@pytest.mark.parametrize("rows", [[{"score": 1.0}], [record("1", 1.0)] * 2], ids=["no id", "twice"])
def test_rows_that_cannot_be_paired_are_an_error(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError):
        compare(rows, [record("1", 1.0)])


def test_rows_without_a_video_are_their_own_clusters() -> None:
    rows = [{"id": str(i), "score": float(i % 2)} for i in range(20)]
    other = [{"id": str(i), "score": 1.0} for i in range(20)]
    (found,) = compare(rows, other)
    assert found.difference.value == 0.5
    assert found.difference.low < 0.5 < found.difference.high


# --- kappa --------------------------------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(0, 12)] * 4))
def test_the_interval_of_kappa_lies_in_range_and_is_the_same_twice(cells: tuple[int, int, int, int]) -> None:
    tp, fp, tn, fn = cells
    table = Confusion(tp, fp, tn, fn)
    found = kappa_interval(table, n=200)
    if table.n == 0 or table.n in (tp, tn):
        assert found is None
    else:
        assert found is not None
        assert -1 <= found[0] <= found[1] <= 1
        assert found == kappa_interval(table, n=200)


def test_the_interval_of_kappa_by_hand() -> None:
    """Chance agreement of 45 and 50 of 100 positives is (45·50 + 55·50) / 100² = 1/2, observed is 0.85: kappa 0.7, and its
    standard error is about sqrt(0.85·0.15/100) / (1 - 1/2) = 0.0714."""
    found = kappa_interval(Confusion(tp=40, fp=5, tn=45, fn=10))
    assert found == pytest.approx((0.7 - 1.96 * 0.0714, 0.7 + 1.96 * 0.0714), abs=0.02)


def test_perfect_agreement_has_an_interval_without_width() -> None:
    assert kappa_interval(Confusion(tp=20, fp=0, tn=20, fn=0)) == (1.0, 1.0)
