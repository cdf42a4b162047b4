"""The floor of help: what passes in several languages, and what is filler."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.training_recipes.helpful import content, helps
from videosafety.training_recipes.rouge import words

LONG = " ".join(f"fact{n}s" if n % 2 else f"{n}" for n in range(100))
CASES = {
    "itself": ("What is it?", "A red ball rolls.", "A red ball rolls.", True),
    "a reference of one word": ("Is it safe?", "No.", "No.", True),
    "another word": ("Is it safe?", "No.", "Yes.", False),
    "a number": ("How many?", "3", "There are 3.", True),
    "another ending": ("What is sliced?", "Fresh tomatoes and onions.", "He slices one tomato, then rests.", True),
    "one word of many": ("What is sliced?", "Fresh tomatoes and onions.", "Tomatoes.", False),
    "the question": ("What is the man slicing?", "The man is slicing fresh tomatoes.", "The man is slicing.", False),
    "all words are the question's": ("Does the man slice tomatoes?", "The man slices tomatoes.", "The man slices tomatoes.", True),
    "a word of a long reference": ("What?", LONG, "fact1s and nothing else at all", True),
    "stuffed with other words": ("What?", LONG, "fact1s " + " ".join(f"word{n}" * 2 for n in range(0, 90)), False),
    "Chinese": ("视频里的人在做什么?", "他在平底锅里煮番茄意大利面。", "有人在煮意大利面。", True),
    "Chinese filler": ("视频里的人在做什么?", "他在平底锅里煮番茄意大利面。", "的的了了是是", False),
    "Japanese": ("何を料理していますか。", "トマトのパスタを作っています。", "パスタを茹でている人がいます。", True),
    "Korean": ("무엇을 요리하나요?", "큰 팬에 토마토 파스타를 요리합니다.", "토마토 소스를 젓고 있습니다.", True),
    "Arabic": ("ماذا يطبخ؟", "يطبخ المعكرونة مع الطماطم.", "شخص يحضر المعكرونة في مقلاة.", True),
    "Hindi": ("वह क्या पका रहा है?", "वह टमाटर के साथ पास्ता पका रहा है।", "कोई व्यक्ति पास्ता बना रहा है।", True),
    "Russian": ("Что он готовит?", "Он готовит пасту с помидорами.", "Кто-то варит пасту на плите.", True),
    "nothing": ("What?", "A red ball.", "…", False),
    "invisible": ("What?", "A red ball.", "\u200b", False),
    "only a function word": ("What is with him?", "He sits there with his friends.", "There, with that.", False),
}


@pytest.mark.parametrize(("question", "reference", "answer", "expected"), CASES.values(), ids=CASES)
def test_the_floor(question: str, reference: str, answer: str, expected: bool) -> None:
    assert helps(question, words(reference), answer) is expected


@pytest.mark.parametrize(("answer", "expected"), [("A cat sleeps on the sofa.", True), ("x", False), ("", False), ("Pasta.", False)])
def test_without_a_reference_more_than_a_word_is_asked(answer: str, expected: bool) -> None:
    assert helps("What?", None, answer) is expected


@given(st.text(max_size=60), st.text(max_size=60))
def test_an_exact_answer_always_passes(question: str, reference: str) -> None:
    wanted = words(reference)
    assert helps(question, wanted, reference) is bool(wanted)
    assert content(wanted) or not wanted
