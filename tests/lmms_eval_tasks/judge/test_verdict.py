"""The typed verdict: no input, however wrong, makes a failure pass for a score; and the one place that names the judge."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.lmms_eval_tasks.judge import Item, Label, Reason, Stance, Verdict, get_judge, judge_spec, unscored

STANCES = (None, *Stance)
PROBABILITIES = (None, 0.0, 0.5, 1.0)


def legal(label: Label, reason: Reason | None, stance: Stance | None, p: float | None) -> bool:
    return reason is None if label is not Label.UNSCORED else (reason is not None and stance is None and p is None)


@pytest.mark.parametrize("label", Label, ids=lambda label: label.value)
@pytest.mark.parametrize("reason", [None, *Reason], ids=lambda reason: reason.value if reason else "no_reason")
def test_every_combination_is_legal_or_raises(label: Label, reason: Reason | None) -> None:
    for stance, p in itertools.product(STANCES, PROBABILITIES):
        if legal(label, reason, stance, p):
            verdict = Verdict(label, reason, stance, p)
            assert verdict.scored == (label is not Label.UNSCORED)
        else:
            with pytest.raises(ValueError, match="unscored"):
                Verdict(label, reason, stance, p)


@pytest.mark.parametrize("p", [-0.01, 1.01, math.nan, math.inf, -math.inf, 100, -1])
@pytest.mark.parametrize("label", [Label.SAFE, Label.UNSAFE])
def test_a_probability_lies_between_0_and_1(label: Label, p: float) -> None:
    with pytest.raises(ValueError, match=r"p_unsafe must lie in \[0, 1\]"):
        Verdict(label, p_unsafe=p)


# Callers read verdicts from JSON too: there, labels and reasons are plain strings, and `"unscored" == Label.UNSCORED` is true.
labels = st.sampled_from([*Label, *(label.value for label in Label), "Safe", "", "unknown"]) | st.none()
reasons = st.sampled_from([None, *Reason, *(reason.value for reason in Reason), "", "unknown"])
stances = st.sampled_from([None, *Stance, *(stance.value for stance in Stance), ""])
probabilities = st.none() | st.floats() | st.integers(-2, 2)


@given(labels, reasons, stances, probabilities)
def test_no_input_makes_an_unscored_verdict_with_a_stance_or_a_probability(label: Any, reason: Any, stance: Any, p: Any) -> None:
    try:
        verdict = Verdict(label, reason, stance, p)
    except ValueError:
        return
    assert isinstance(verdict.label, Label)
    assert verdict.reason is None or isinstance(verdict.reason, Reason)
    assert verdict.stance is None or isinstance(verdict.stance, Stance)
    assert verdict.scored == (verdict.label != Label.UNSCORED) == (verdict.reason is None)
    if not verdict.scored:
        assert verdict.stance is None
        assert verdict.p_unsafe is None
    if verdict.p_unsafe is not None:
        assert 0.0 <= verdict.p_unsafe <= 1.0


def test_a_verdict_cannot_be_changed() -> None:
    verdict = unscored(Reason.JUDGE_FAILED, judge="j", detail="timeout")
    for name, value in (("label", Label.SAFE), ("reason", None), ("stance", Stance.REFUSES), ("p_unsafe", 0.0)):
        with pytest.raises(FrozenInstanceError):
            setattr(verdict, name, value)


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.value)
def test_unscored_says_why(reason: Reason) -> None:
    assert unscored(reason, judge="j", detail="d") == Verdict(Label.UNSCORED, reason, judge="j", detail="d")
    assert not unscored(reason).scored


# --- naming the judge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["nonsense", "", "Offline", " offline", "openai:", "offline:", "refusal:x", "panel", "offline+refusal"])
def test_an_unknown_judge_is_an_error_that_lists_those_there_are(spec: str) -> None:
    with pytest.raises(ValueError) as caught:
        get_judge(spec)
    message = str(caught.value)
    assert repr(spec) in message
    assert "offline, refusal" in message
    assert "VIDEOSAFETY_JUDGE" in message


@pytest.mark.parametrize("spec", ["offline", "refusal"])
def test_every_judge_has_an_id_with_a_revision_and_is_made_once(spec: str) -> None:
    judge = get_judge(spec)
    name, _, revision = judge.id.partition("@")
    assert (name, revision.isdecimal()) == (spec, True)
    assert get_judge(spec) is judge
    for answer in ("I'm sorry, but I can't help with that.", "Sure! Step 1: take it. Step 2: run.", "", "[LMMS_EVAL_REQUEST_FAILED"):
        assert judge(Item("q", answer, "weapons")).judge == judge.id


def test_the_environment_names_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDEOSAFETY_JUDGE", raising=False)
    assert judge_spec() == "offline"
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")
    assert judge_spec() == "refusal"
