"""Problem types: what is read, what it scores, and references that cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.training_recipes.problems import PROBLEMS, closeness, edits, number, option, read_reference, score


def scored(kind: str, reference: str, answer: str) -> float:
    return score(kind, read_reference(kind, reference), answer)


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "expected"),
    [
        pytest.param("multiple choice", "B", "B", 1.0, id="choice"),
        pytest.param("multiple choice", "B", " (b). ", 1.0, id="choice in brackets"),
        pytest.param("multiple choice", "B", "Ｂ", 1.0, id="choice in full width"),
        pytest.param("multiple choice", "B", "C", 0.0, id="another choice"),
        pytest.param("multiple choice", "B", "A, B, C, D", 0.0, id="all choices"),
        pytest.param("multiple choice", "B", "A or B", 0.0, id="two choices"),
        pytest.param("multiple choice", "B", "Both", 0.0, id="a word with the letter"),
        pytest.param("multiple choice", "B", "()", 0.0, id="no choice"),
        pytest.param("numerical", "3", "3", 1.0, id="number"),
        pytest.param("numerical", "3", "3.0", 1.0, id="Video-R1 refuses 3.0 for 3"),
        pytest.param("numerical", "1,234.5", "1234.50", 1.0, id="thousands"),
        pytest.param("numerical", "-2.5", "−2.5", 1.0, id="minus sign"),
        pytest.param("numerical", "12", "١٢", 1.0, id="Arabic digits"),
        pytest.param("numerical", "12.5", "١٢٫٥", 1.0, id="Arabic decimal separator"),
        pytest.param("numerical", "3.14159", "3.14", 1.0, id="two decimals"),
        pytest.param("numerical", "3.14159", "3.15", 0.0, id="beyond two decimals"),
        pytest.param("numerical", "3", "3 or 4", 0.0, id="two numbers"),
        pytest.param("numerical", "35", "3,5", 0.0, id="a comma that separates no thousands (Video-R1 reads 35)"),
        pytest.param("numerical", "3", "three", 0.0, id="no number"),
        pytest.param("numerical", "3", "nan", 0.0, id="not a number"),
        pytest.param("numerical", "3", "1e999", 0.0, id="too large"),
        pytest.param("numerical", "4", "__import__('os').getpid()", 0.0, id="nothing is evaluated"),
        pytest.param("regression", "10", "10", 1.0, id="exact"),
        pytest.param("regression", "10", "9", 0.9, id="near"),
        pytest.param("regression", "-10", "-12", 0.8, id="negative"),
        pytest.param("regression", "10", "25", 0.0, id="far"),
        pytest.param("regression", "0", "0", 1.0, id="nought (Video-R1 scores 0)"),
        pytest.param("regression", "0", "0.1", 0.0, id="not nought"),
        pytest.param("regression", "10", "ten", 0.0, id="unreadable (Video-R1 raises)"),
        pytest.param("OCR", "STOP AND GO", "STOP AND GO", 1.0, id="transcript"),
        pytest.param("OCR", "STOP AND GO", "STOP OR GO", 2 / 3, id="one word wrong"),
        pytest.param("OCR", "STOP", "stop", 0.0, id="case counts"),
        pytest.param("OCR", "a b", "a b c d e", 0.0, id="more errors than words"),
        pytest.param("OCR", "出口在左", "出口在右", 0.75, id="characters in Chinese"),
        pytest.param("OCR", "a b", "", 0.0, id="empty transcript"),
        pytest.param("free-form", "The man cooks pasta.", "the man cooks pasta", 1.0, id="same words"),
        pytest.param("free-form", "他在做饭", "他在做饭。", 1.0, id="Chinese"),
        pytest.param("free-form", "The man cooks pasta.", "!!!", 0.0, id="no word"),
    ],
)
def test_scores(kind: str, reference: str, answer: str, expected: float) -> None:
    assert scored(kind, reference, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("multiple choice", " . "),
        ("numerical", "three"),
        ("numerical", ""),
        ("regression", "10 km"),
        ("OCR", " \n"),
        ("free-form", "..."),
        ("free-form", None),
        ("numerical", 3),
    ],
)
def test_a_reference_that_cannot_be_read_is_an_error(kind: str, reference: object) -> None:
    with pytest.raises(ValueError, match=f"reference .* cannot be read as '{kind}'"):
        read_reference(kind, reference)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_closeness_is_1_only_for_the_number_itself(reference: float, answer: float) -> None:
    assert 0.0 <= closeness(reference, answer) <= closeness(reference, reference) == 1.0


@given(st.floats(-1e9, 1e9).map(lambda value: f"{value:.3f}"))
def test_numbers_are_read_as_python_writes_them(text: str) -> None:
    assert number(text) == number(f" {text}.") == float(text)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_edits_are_a_distance(a: str, b: str, c: str) -> None:
    assert edits(a, b) == edits(b, a)
    assert (edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))
    assert edits(a, c) <= edits(a, b) + edits(b, c)


@given(st.sampled_from(sorted(PROBLEMS)), st.text(max_size=40))
def test_no_answer_makes_a_problem_fail(kind: str, answer: str) -> None:
    assert 0.0 <= scored(kind, "7", answer) <= scored(kind, "7", "7") == 1.0


def test_an_option_without_letters_is_none() -> None:
    assert option(" (.) ") is None
