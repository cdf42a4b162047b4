"""ROUGE that sees every script: how texts are cut into words, and the scores against hand-made and slow ones."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.training_recipes.rouge import as_written, common_subsequence, rouge, rouge_l, rouge_n, words

# The same answer in ten languages and Thai, each with another one of the same language.
ANSWERS = {
    "en": ("The man is cutting vegetables in the kitchen.", "Two dogs play on a beach."),
    "zh": ("男人正在厨房里切蔬菜。", "两只狗在海滩上玩耍。"),
    "hi": ("आदमी रसोई में सब्ज़ियाँ काट रहा है।", "दो कुत्ते समुद्र तट पर खेलते हैं।"),
    "es": ("El hombre está cortando verduras en la cocina.", "Dos perros juegan junto al mar."),
    "fr": ("L'homme coupe des légumes dans la cuisine.", "Deux chiens jouent au bord de mer."),
    "ar": ("الرجل يقطع الخضار في المطبخ.", "كلبان يلعبان على الشاطئ."),
    "pt": ("O homem está cortando legumes na cozinha.", "Dois cães brincam perto do mar."),
    "ru": ("Мужчина режет овощи на кухне.", "Две собаки играют у моря."),
    "ja": ("男の人が台所で野菜を切っています。", "二匹の犬が浜辺で遊ぶ。"),
    "ko": ("남자가 부엌에서 채소를 썰고 있다.", "개 두 마리가 해변에서 논다."),
    "th": ("ผู้ชายกำลังหั่นผักในครัว", "สุนัขสองตัวเล่นที่ชายหาด"),
}


@pytest.mark.parametrize("language", ANSWERS)
def test_defect_16_identical_answers_score_1_in_every_language(language: str) -> None:
    answer, other = ANSWERS[language]
    assert rouge(answer, answer) == 1.0
    assert rouge(answer, other) < 0.35
    assert rouge(answer, other) < rouge(answer, answer[: len(answer) // 2 + 1]) < 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("The cat's RED-hot, 42!", ["the", "cat", "s", "red", "hot", "42"], id="English"),
        pytest.param("Él está—¡aquí!", ["él", "está", "aquí"], id="accents"),
        pytest.param("e\u0301te\u0301", ["été"], id="decomposed accents"),
        pytest.param("ＡＢＣ１２", ["abc12"], id="full width"),
        pytest.param("हिन्दी में।", ["हिन्दी", "में"], id="vowel signs do not break Hindi words"),
        pytest.param("نَعَمْ، شـكرا", ["نعم", "شكرا"], id="Arabic vowels, comma and stretching"),
        pytest.param("他说AI好", ["他", "说", "ai", "好"], id="Chinese with a Latin word"),
        pytest.param("タワー", ["タ", "ワ", "ー"], id="kana"),
        pytest.param("ｱｲ", ["ア", "イ"], id="half width kana"),
        pytest.param("그는 갔다", ["그는", "갔다"], id="Korean has spaces"),
        pytest.param("ที่นี่", ["ที่", "นี่"], id="Thai marks belong to their letter"),
        pytest.param("\U00020000\U00020001", ["\U00020000", "\U00020001"], id="beyond the first plane"),
        pytest.param("a\u200bb", ["ab"], id="invisible letters"),
        pytest.param("\u0301 ... \U0001f600 —", [], id="no word at all"),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("reference", "candidate", "one", "two", "longest"),
    [
        pytest.param("a b c d", "a b c d", 1.0, 1.0, 1.0, id="equal"),
        pytest.param("a b c d", "d c b a", 1.0, 0.0, 0.25, id="backwards"),
        pytest.param("a b c d", "a b", 2 * 2 / 6, 2 * 1 / 4, 2 * 2 / 6, id="half"),
        pytest.param("a b", "a a a a b", 2 * 2 / 7, 2 * 1 / 5, 2 * 2 / 7, id="repeating a word pays once"),
        pytest.param("a b c", "a x b y c", 2 * 3 / 8, 0.0, 2 * 3 / 8, id="with gaps"),
        pytest.param("a b", "x y", 0.0, 0.0, 0.0, id="nothing shared"),
        pytest.param("a b", "a", 2 / 3, 0.0, 2 / 3, id="one word"),
        pytest.param("a b", "", 0.0, 0.0, 0.0, id="empty"),
    ],
)
def test_the_three_scores_by_hand(reference: str, candidate: str, one: float, two: float, longest: float) -> None:
    sides = words(reference), words(candidate)
    assert rouge_n(*sides, 1) == pytest.approx(one)
    assert rouge_n(*sides, 2) == pytest.approx(two)
    assert rouge_l(*sides) == pytest.approx(longest)
    assert rouge(reference, candidate) == pytest.approx((one + two + longest) / 3)


def test_a_reference_of_one_word_can_be_met() -> None:
    assert rouge("red", "Red.") == 1.0
    assert rouge("red", "a red one") == 0.5


@pytest.mark.parametrize("reference", ["", "  ", "...", "\U0001f600"])
def test_nothing_to_compare_with_is_an_error(reference: str) -> None:
    with pytest.raises(ValueError, match="no word to compare with"):
        rouge(reference, "a b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Stop, NOW!", ["Stop,", "NOW!"]), ("出口 Exit 3", ["出", "口", "Exit", "3"]), (" \n", [])],
)
def test_transcripts_keep_case_and_punctuation(text: str, expected: list[str]) -> None:
    assert as_written(text) == expected


short = st.lists(st.sampled_from("abc"), max_size=7)


@given(short, short)
def test_common_subsequence_against_all_subsequences(a: list[str], b: list[str]) -> None:
    of_b = {pick for n in range(len(b) + 1) for pick in combinations(b, n)}
    assert common_subsequence(a, b) == max(n for n in range(len(a) + 1) if of_b & set(combinations(a, n)))


@given(st.text(max_size=60), st.text(max_size=60))
def test_scores_lie_between_0_and_1_and_are_1_for_the_text_itself(a: str, b: str) -> None:
    if words(a):
        assert 0.0 <= rouge(a, b) <= rouge(a, a) == 1.0
