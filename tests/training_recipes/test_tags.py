"""The strict tag parser: one form is read, everything else is not, and nothing can hide in it."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.training_recipes.tags import Tagged, parse, tag_count

GOOD = "<think>t</think><answer>a</answer><vidType>1</vidType><textType>0</textType>"
SHORT = "<think>t</think><answer>a</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(GOOD, Tagged("t", "a", 1, 0), id="the form"),
        pytest.param(GOOD + "\n", Tagged("t", "a", 1, 0), id="trailing newline (defect 18)"),
        pytest.param("\n" + GOOD.replace("><", ">\n\n<"), Tagged("t", "a", 1, 0), id="white space before and between"),
        pytest.param(GOOD.replace(">1<", "> 1\n<"), Tagged("t", "a", 1, 0), id="white space around a label"),
        pytest.param(GOOD.replace(">a<", "> a < b, b > c \n<"), Tagged("t", "a < b, b > c", 1, 0), id="angle brackets that are no tags"),
        pytest.param(
            GOOD.replace(">a<", "><b>a</b> <thinker> <think-tank><"), Tagged("t", "<b>a</b> <thinker> <think-tank>", 1, 0), id="other tags"
        ),
        pytest.param(GOOD.replace(">a<", ">答え<").replace(">t<", ">สระ<"), Tagged("สระ", "答え", 1, 0), id="other scripts"),
    ],
)
def test_what_is_in_form(text: str, expected: Tagged) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("a", id="no tags (defect 17)"),
        pytest.param(SHORT, id="no label tags"),
        pytest.param(GOOD.replace("<think>t</think>", ""), id="no thinking"),
        pytest.param(GOOD.replace("<answer>a</answer>", ""), id="no answer"),
        pytest.param(GOOD.replace("<textType>0</textType>", ""), id="one label"),
        pytest.param(GOOD.removesuffix("</textType>"), id="cut off"),
        pytest.param(GOOD.replace(">t<", "> \n<"), id="empty thinking (defect 18)"),
        pytest.param(GOOD.replace(">a<", "><"), id="empty answer (defect 18)"),
        pytest.param(GOOD.replace(">a<", "> \u200b\ufeff <"), id="invisible answer"),
        pytest.param(GOOD.replace(">a<", ">... \U0001f44d<"), id="answer without letter or digit"),
        pytest.param(GOOD.replace(">1<", "><"), id="empty label (defect 18)"),
        pytest.param(GOOD.replace(">1<", ">1.<"), id="label with a full stop (defect 18)"),
        pytest.param(GOOD.replace(">1<", ">harmful<"), id="label in words (defect 18)"),
        pytest.param(GOOD.replace(">1<", ">2<"), id="no such label"),
        pytest.param(GOOD.replace(">1<", ">01<"), id="two digits"),
        pytest.param(GOOD.replace(">1<", ">0 1<"), id="both labels"),
        pytest.param(GOOD.replace(">1<", ">１<"), id="full width digit"),
        pytest.param(GOOD + "By the way", id="text after"),
        pytest.param("Sure. " + GOOD, id="text before"),
        pytest.param(GOOD.replace("</answer>", "</answer> and "), id="text between"),
        pytest.param(GOOD + GOOD, id="twice"),
        pytest.param(GOOD + "<vidType>0</vidType>", id="a label twice"),
        pytest.param(
            GOOD.replace("<vidType>1</vidType><textType>0</textType>", "<textType>0</textType><vidType>1</vidType>"),
            id="labels in another order",
        ),
        pytest.param("<answer>a</answer><think>t</think><vidType>1</vidType><textType>0</textType>", id="answer first"),
        pytest.param(GOOD.replace(">a<", "><answer>a</answer><"), id="nested"),
        pytest.param(GOOD.replace(">a<", ">a</answer><answer>b<"), id="two answers"),
        pytest.param(GOOD.replace(">a<", ">a <vidType>0</vidType><"), id="label inside the answer"),
        pytest.param(GOOD.replace(">a<", "><thinking>steps</thinking>no<"), id="what judges take for thinking"),
        pytest.param(GOOD.replace(">a<", ">a </THINK ><"), id="closing tag in capitals"),
        pytest.param(GOOD.replace(">a<", ">a <answer lang='en'><"), id="tag with an attribute"),
        pytest.param(GOOD.replace(">a<", ">a ＜/answer＞<"), id="tag in full width"),
        pytest.param(GOOD.replace(">a<", ">a </ans\u200bwer><"), id="tag with an invisible letter"),
        pytest.param(GOOD.replace("vidType", "vidtype"), id="another spelling"),
        pytest.param(GOOD.replace("</answer>", "<answer>"), id="opened twice, never closed"),
    ],
)
def test_what_is_not(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(SHORT, Tagged("t", "a", None, None), id="no labels"),
        pytest.param(GOOD, Tagged("t", "a", 1, 0), id="both labels"),
        pytest.param(SHORT + "<vidType>1</vidType>", None, id="one label"),
        pytest.param(SHORT + "<vidType>1</vidType><textType>safe</textType>", None, id="a label that is none"),
        pytest.param("a", None, id="no tags"),
    ],
)
def test_problems_without_labels(text: str, expected: Tagged | None) -> None:
    assert parse(text, labels=False) == expected


TOKENS = re.findall(r"<[^>]+>|\w", GOOD)
inserts = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([*TOKENS, " ", "\n", "x", "0", "<Answer>", "</thinking>", "<"])), max_size=3
)


@given(inserts, st.sets(st.integers(0, 11), max_size=1))
def test_whatever_is_read_has_each_tag_once_and_holds_no_tag(inserted: list[tuple[int, str]], dropped: set[int]) -> None:
    tokens = [token for i, token in enumerate(TOKENS) if i not in dropped]
    for at, piece in inserted:
        tokens.insert(at, piece)
    text = "".join(tokens)
    found = parse(text)
    if found is None:
        assert inserted or dropped
    else:
        assert [text.count(f"<{tag}>") for tag in ("think", "answer", "vidType", "textType")] == [1, 1, 1, 1]
        assert tag_count(found.think + found.answer) == 0


@given(st.text(st.characters(exclude_characters="<＜﹤>", exclude_categories=["Cs"])), st.sampled_from("01"), st.sampled_from("01"))
def test_any_answer_without_tags_is_read_back(answer: str, visual: str, textual: str) -> None:
    found = parse(f"<think>t</think><answer>x{answer}x</answer><vidType>{visual}</vidType><textType>{textual}</textType>\n")
    assert found == Tagged("t", f"x{answer}x", int(visual), int(textual))


@pytest.mark.parametrize("piece", ["<", "< ", "<think ", "</think>", "<answer <answer >", "<vidType>1", " "])
def test_hostile_lengths_take_no_time(piece: str) -> None:
    start = time.perf_counter()
    parse(GOOD.replace(">a<", f">{piece * 20_000}<"))
    assert time.perf_counter() - start < 5, "the pattern backtracks"
