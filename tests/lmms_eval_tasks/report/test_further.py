"""Figures beside a task's main one: what each counts, against definitions written here, and what is shown where there is none."""

from __future__ import annotations

import math

import pytest

from videosafety.lmms_eval_tasks.metrics import category_mean as mean_of_lmms_eval
from videosafety.lmms_eval_tasks.metrics import wilson
from videosafety.lmms_eval_tasks.report.further import Figure, category_mean, further, mean_of
from videosafety.lmms_eval_tasks.report.summary import figure_words


def scored(*scores: float | None, category: str = "a", key: str = "score", reason: str = "judge_failed") -> list[dict]:
    """A record a score, each of a row of its own; None is unscored."""
    rows = [{"category": category, "video_id": f"{category}{i}"} for i in range(len(scores))]
    return [row | ({"reason": reason} if s is None and key == "score" else {key: s}) for row, s in zip(rows, scores, strict=True)]


def of(records: list[dict], stated: float | None, aggregation: str = "", name: str = "thing") -> Figure:
    return further(name, records, stated, aggregation, higher=True)


def test_a_share_counts_scored_rows_and_says_why_others_are_not() -> None:
    figure = of(scored(*[1.0] * 9, *[0.0] * 3, None, None), 0.75, "share")
    assert (figure.rate.n, figure.rate.n_scored, figure.rate.value) == (14, 12, 0.75)
    assert (figure.rate.low, figure.rate.high) == wilson(0.75, 12)
    assert (figure.rate.bound_low, figure.rate.bound_high) == (9 / 14, 11 / 14)
    assert (figure.reason, figure.of, figure.is_share) == ("judge_failed", "", True)


def test_rows_that_a_metric_leaves_out_by_what_they_are_are_not_unscored() -> None:
    figure = of(scored(*[1.0] * 10, *[None] * 5, reason="not_counted") + scored(None), 1.0, "share")
    assert (figure.rate.n, figure.rate.n_scored, figure.reason) == (11, 10, "judge_failed")


def test_official_rounding_is_still_the_share_of_the_rows() -> None:
    figure = of(scored(*[1.0] * 4, *[0.0] * 8), 0.333, "attack_rate")
    assert figure.rate.value == pytest.approx(1 / 3)


def test_the_mean_of_categories_has_kishs_interval() -> None:
    records = scored(*[1.0] * 8, *[0.0] * 2, key="value") + scored(*[1.0] * 10, *[0.0] * 30, category="b", key="value")
    figure = of(records, mean_of_lmms_eval(records), "category_mean")
    effective = 2**2 / (1 / 10 + 1 / 40)  # (Σw)² / Σ(w²/n), weights of 1
    assert figure.rate.value == pytest.approx((0.8 + 0.25) / 2) == mean_of_lmms_eval(records)
    assert (figure.rate.low, figure.rate.high) == pytest.approx(wilson(0.525, effective))
    assert (figure.rate.n_scored, figure.of) == (50, "mean of 2 categories")
    assert of(records, 0.525, "mean_of_three") == figure  # known by what it is, where its function is not
    assert of(records, 0.525) == figure


def test_a_category_without_a_verdict_leaves_the_mean_without_a_figure() -> None:
    records = scored(*[1.0] * 12, key="value") + scored(None, None, category="b", key="value")
    figure = of(records, None, "category_mean")
    assert mean_of_lmms_eval(records) is None
    assert (figure.rate.value, figure.rate.n_scored) == (None, 12)
    assert figure_words(figure) == "no figure"
    assert figure.of == "mean of 2 categories, 1 without a verdict"


def test_weights_and_shared_videos_widen_the_interval() -> None:
    one, other = scored(*[1.0, 0.0] * 10), scored(*[1.0, 0.0] * 10)  # the same twenty videos
    rate = mean_of([one, other], [20.0, 20.0])
    assert (rate.value, rate.n_scored) == (0.5, 40)
    assert (rate.low, rate.high) == pytest.approx(wilson(0.5, 20))
    apart = mean_of([one, scored(*[1.0, 0.0] * 10, category="b")], [20.0, 20.0])
    assert (apart.low, apart.high) == pytest.approx(wilson(0.5, 40))
    assert mean_of([scored(1.0, 1.0), scored(0.0, 0.0, category="b")], [3.0, 1.0]).value == 0.75


@pytest.mark.parametrize("shares", [[1.0] * 3, [1.0] * 7])
def test_a_mean_of_ones_is_one(shares: list[float]) -> None:
    rate = mean_of([scored(*[1.0] * 7, category=str(i)) for i, _ in enumerate(shares)], [1 / 3] * len(shares))
    assert rate.value == pytest.approx(1.0)
    assert rate.value <= 1.0
    assert not math.isnan(rate.low)


KINDS = scored(*[1.0] * 9, 0.0, category="Exaggerated Risk", key="value") + scored(*[0.0] * 10, category="over-safe", key="value")


@pytest.mark.parametrize(
    ("function", "stated", "n", "words"),
    [
        ("exaggerated_risk", 0.9, 10, "rows of Exaggerated Risk"),
        ("oversafe", 0.0, 10, "rows of over-safe"),
        ("pooled_by_a_name_of_its_own", 0.45, 20, "mean of 2 categories"),  # as many rows in each: the mean is the share
    ],
)
def test_a_figure_of_one_category_is_known_by_name_and_value(function: str, stated: float, n: int, words: str) -> None:
    figure = of(KINDS, stated, function)
    assert (figure.rate.n, figure.rate.value, figure.of) == (n, stated, words)


def test_a_name_that_fits_and_a_value_that_does_not_is_no_category() -> None:
    figure = of(KINDS, 0.123, "exaggerated_risk")
    assert (figure.is_share, figure.rate.value, figure.rate.low) == (False, 0.123, None)


def test_a_share_by_an_unknown_function_is_known_by_its_value() -> None:
    figure = of(scored(*[1.0] * 9, *[0.0] * 3), 0.75, "own")
    assert (figure.rate.n_scored, figure.of, figure.is_share) == (12, "", True)


F1 = [{"harmful": True, "flagged": i % 2 == 0, "reason": None} for i in range(12)] + [{"reason": "no_answer_found"}] * 2
RISKS = [{"risk": 3.0, "reason": None}] * 11 + [{"reason": "judge_failed"}]


@pytest.mark.parametrize(
    ("records", "stated", "n_scored", "words"),
    [
        (F1, 0.6667, 12, "0.667"),
        (RISKS, 3.0, 11, "3"),
        (RISKS[-9:], 3.0, 8, "n=8, too few"),
        ([{"reason": "needs_probability"}] * 20, None, 0, "no verdicts"),
        ([{"risk": 2.0}] * 12, None, 12, "no figure"),
    ],
)
def test_what_is_no_share_is_a_number_with_n_and_without_an_interval(
    records: list, stated: float | None, n_scored: int, words: str
) -> None:
    figure = of(records, stated, "f1")
    assert (figure.rate.n_scored, figure.rate.low, figure.is_share) == (n_scored, None, False)
    assert figure_words(figure) == words


def test_nothing_scored_is_no_verdict_and_never_zero() -> None:
    figure = of(scored(*[None] * 20, reason="needs_llm_judge"), None, "share")
    assert (figure.rate.value, figure.reason, figure_words(figure)) == (None, "needs_llm_judge", "no verdicts")
    assert category_mean([])[0].value is None
