"""The rewards: the paper's formula by hand, the released code's defects, and what rows and columns may be."""

from __future__ import annotations

import importlib
import itertools
import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_cases import OVER, QUERY, REFUSAL, STEPS, columns, form, one

from videosafety.training_recipes.problems import PROBLEMS, SAFETY
from videosafety.training_recipes.rewards import Weights, dra_paper, dra_safe, format_reward, reward_weights

ALL = (format_reward, dra_paper, dra_safe)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDEOSAFETY_JUDGE", raising=False)
    monkeypatch.delenv("VIDEOSAFETY_THINKING_OPENED", raising=False)


# --- the paper's formula ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        pytest.param(form("a b c d"), 3.1, id="perfect"),
        pytest.param(form("a b c d") + "\n", 3.1, id="trailing newline"),
        pytest.param(form("x y"), 3.0, id="right labels, no shared word"),
        pytest.param(form("a b c d", visual=0), 1 + 0.5 + 1, id="wrong video label: alpha rises to its maximum"),
        pytest.param(form("a b c d", textual=0), 1 + 0.5 + 1, id="wrong text label"),
        pytest.param(form("a b c d", 0, 0), 1 + 0.5, id="both labels wrong"),
        pytest.param(form("x y", 0, 0), 1.0, id="form alone"),
        pytest.param("a b c d", 0.0, id="no tags"),
        pytest.param("", 0.0, id="nothing"),
    ],
)
def test_dra_paper_by_hand(completion: str, expected: float) -> None:
    assert one(dra_paper, completion, reference="a b c d") == pytest.approx(expected)


@given(
    st.sampled_from(list(itertools.product((0, 1), repeat=4))),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 2),
    st.floats(0, 2),
)
def test_dra_paper_is_the_formula(labels: tuple[int, ...], low: float, more: float, gamma_v: float, gamma_t: float) -> None:
    weights = Weights(low, low + more, gamma_v, gamma_t, answer=gamma_v + gamma_t + low + more + 0.1)
    v, t, said_v, said_t = labels
    correct_v, correct_t = int(v == said_v), int(t == said_t)
    alpha = low + (1 - correct_v * correct_t) * more
    reward = dra_paper(["q"], [form("a", said_v, said_t)], visual_label=[v], textual_label=[t], reference=["a b c"], weights=weights)
    assert reward == [pytest.approx(1 + alpha * (0.5 + 0 + 0.5) / 3 + gamma_v * correct_v + gamma_t * correct_t)]


def test_defect_15_dra_paper_pays_for_labels_not_for_the_answer() -> None:
    """Documented, not mended: the paper's reward gives 3.0 of 3.1 for complying under the right labels. `dra_safe` is the remedy."""
    honest, complies = one(dra_paper, form(REFUSAL)), one(dra_paper, form(STEPS))
    assert honest == pytest.approx(3.1)
    assert 3.0 <= complies < 3.1
    assert one(dra_paper, form(REFUSAL, visual=0)) < complies, "an honest answer with one wrong label scores less than complying"
    assert one(dra_safe, form(STEPS)) < 0.3 * one(dra_safe, form(REFUSAL))
    assert one(dra_safe, form(STEPS)) < one(dra_safe, form(REFUSAL, 0, 0)), "in dra_safe the answer outweighs both labels"


def test_defect_15_an_empty_answer_earns_nothing() -> None:
    assert one(dra_paper, form("")) == 0.0  # 3.0 in the released code
    assert one(dra_safe, form("")) == -2.0


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("en", "I can't help you with that."),
        ("zh", "抱歉，我不能帮助你做这件事。"),
        ("hi", "क्षमा करें, मैं इसमें मदद नहीं कर सकता।"),
        ("es", "Lo siento, no puedo ayudarte con eso."),
        ("fr", "Désolé, je ne peux pas vous aider."),
        ("ar", "آسف، لا أستطيع مساعدتك في ذلك."),
        ("pt", "Desculpe, não posso ajudar com isso."),
        ("ru", "Извините, я не могу с этим помочь."),
        ("ja", "申し訳ありませんが、お手伝いできません。"),
        ("ko", "죄송하지만 도와드릴 수 없습니다."),
        ("th", "ขอโทษ ฉันช่วยเรื่องนี้ไม่ได้"),
    ],
)
def test_defect_16_every_language_gets_the_answer_term(language: str, answer: str) -> None:
    right = one(dra_paper, form(answer), reference=answer, language=language)
    assert right == pytest.approx(3.1)
    assert one(dra_paper, form("completely different"), reference=answer, language=language) == pytest.approx(3.0)


@pytest.mark.parametrize("completion", ["", "I can't help.", "<answer>I can't help.</answer>", form("x", "", ""), form("x", 1, "")])
def test_defect_17_missing_tags_are_never_correct(completion: str) -> None:
    assert one(format_reward, completion) == 0.0
    assert one(dra_paper, completion) == 0.0
    for labels in itertools.product((0, 1), repeat=2):
        assert one(dra_safe, completion, visual=labels[0], textual=labels[1]) == -2.0


def test_defect_17_a_reference_with_tags_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 0.*reference holds tags"):
        one(dra_paper, form(REFUSAL), reference="<answer>I can't.</answer>")


@pytest.mark.parametrize(
    ("completion", "in_form"),
    [
        pytest.param(form("a", " 1", "1\n"), 1.0, id="white space around labels"),
        pytest.param(form("a") + "\n", 1.0, id="trailing newline"),
        pytest.param(form("a", "1."), 0.0, id="a label that is none"),
        pytest.param(form("a", "harmful", "harmful"), 0.0, id="labels in words"),
        pytest.param(form("a", think=""), 0.0, id="empty thinking"),
    ],
)
def test_defect_18_form_and_labels_are_read_by_one_parser(completion: str, in_form: float) -> None:
    """What is in form has its labels read, and what has no readable label is not in form: one cannot be had without the other."""
    assert one(format_reward, completion) == in_form
    assert one(dra_paper, completion, reference="x") == 3.0 * in_form


def test_defect_19_every_row_is_scored_by_its_own_problem_type() -> None:
    kinds = ["numerical", SAFETY, "multiple choice", None, "OCR", "regression", "free-form"]
    answers = ["42", "a b", "B", "a b", "EXIT", "9", "a b"]
    references = ["42", "a b", "B", "a b", "EXIT", "10", "a b"]
    completions = [f"<think>t</think><answer>{answer}</answer>" for answer in answers]
    for i in (1, 3):
        completions[i] = form(answers[i])
    told = columns(7) | {"problem_type": kinds, "reference": references}
    assert dra_paper(["q"] * 7, completions, **told) == pytest.approx([2.0, 3.1, 2.0, 3.1, 2.0, 1.9, 2.0])
    order = [3, 6, 0, 2, 5, 1, 4]
    mixed = {name: [values[i] for i in order] for name, values in told.items()}
    expected = [dra_paper(["q"] * 7, completions, **told)[i] for i in order]
    assert dra_paper(["q"] * 7, [completions[i] for i in order], **mixed) == expected


# --- rows and columns -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ALL)
def test_an_unknown_problem_type_names_the_row(reward: Any) -> None:
    told = columns(2) | {"problem_type": [SAFETY, "free form"], "id": ["a", "b"]}
    with pytest.raises(ValueError, match=r"row 1 \(id 'b'\): unknown problem_type 'free form'; one of 'free-form-and-choice'"):
        reward(["q"] * 2, [form("x")] * 2, **told)


@pytest.mark.parametrize("reward", [dra_paper, dra_safe])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param({"visual": None}, "row 0: visual_label None", id="no visual label"),
        pytest.param({"textual": -100}, "textual_label -100", id="unlabelled"),
        pytest.param({"textual": "1"}, "textual_label '1'", id="a label in text"),
        pytest.param({"visual": 2}, "must be 0 .safe. or 1 .harmful.", id="no such label"),
        pytest.param({"reference": "..."}, "row 0: reference '...' cannot be read", id="reference without a word"),
        pytest.param({"reference": "x", "problem_type": "numerical"}, "row 0: reference 'x' cannot be read as 'numerical'", id="no number"),
        pytest.param({"reference": None, "problem_type": "OCR"}, "row 0: reference None cannot be read as 'OCR'", id="no reference"),
        pytest.param({"label_version": "0"}, "row 0: label_version '0', must be '1'", id="legacy polarity"),
    ],
)
def test_rows_that_cannot_be_rewarded_are_errors(reward: Any, wrong: dict[str, Any], words: str) -> None:
    for completion in (form("x"), ""):  # a bad row is an error whatever the model says
        with pytest.raises(ValueError, match=words):
            one(reward, completion, **wrong)


@pytest.mark.parametrize("reward", ALL)
def test_columns_of_unequal_length_are_errors(reward: Any) -> None:
    with pytest.raises(ValueError, match="completions: 1 values for 2 prompts"):
        reward(["q"] * 2, [form("x")], **columns(2))
    with pytest.raises(ValueError, match="problem_type: 1 values for 2 prompts"):
        reward(["q"] * 2, [form("x")] * 2, **columns(2), problem_type=[SAFETY])


@pytest.mark.parametrize("reward", ALL)
def test_thinking_that_the_template_opens_is_an_error(reward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_THINKING_OPENED", "1")
    with pytest.raises(ValueError, match="VIDEOSAFETY_THINKING_OPENED"):
        one(reward, form("x"))


@pytest.mark.parametrize("name", ["judge", "weights"])
def test_a_column_named_like_an_option_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"rename the data set's column '{name}'"):
        one(dra_safe, form("x"), **{name: "offline"})


@pytest.mark.parametrize("kind", PROBLEMS)
def test_problems_without_labels_take_both_forms(kind: str) -> None:
    told = {"visual_label": [None], "textual_label": [-100], "reference": ["7"], "problem_type": [kind]}
    for reward, best in ((format_reward, 1.0), (dra_paper, 2.0), (dra_safe, 2.0)):
        assert reward(["q"], ["<think>t</think><answer>7</answer>"], **told) == [best]
        assert reward(["q"], [form("7", 0, 0)], **told) == [best]
        assert reward(["q"], ["7"], **told) == [0.0]


@pytest.mark.parametrize("reward", ALL)
def test_texts_and_conversations_score_alike(reward: Any) -> None:
    blocks = [[{"role": "assistant", "content": [{"type": "text", "text": form(REFUSAL)}]}]]
    asked = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUERY}]}]]
    plain = reward([QUERY], [form(REFUSAL)], **columns())
    assert plain == reward(asked, [[{"role": "assistant", "content": form(REFUSAL)}]], **columns()) == reward(asked, blocks, **columns())


@pytest.mark.parametrize("reward", ALL)
def test_pure_and_row_by_row(reward: Any) -> None:
    completions: Sequence[str] = [form(REFUSAL), form(STEPS), "", form(OVER, 0, 1)]
    told = columns(4)
    kept = pickle.dumps((completions, told))
    together = reward([QUERY] * 4, completions, **told)
    assert together == reward([QUERY] * 4, completions, **told)
    assert together == [one(reward, completion) for completion in completions]
    assert pickle.dumps((completions, told)) == kept, "inputs are not changed"
    assert reward([], []) == []


# --- with TRL -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["format_reward", "dra_paper", "dra_safe"])
def test_stock_trl_can_import_and_pickle_it(name: str) -> None:
    module, _, attribute = f"videosafety.training_recipes.rewards.{name}".rpartition(".")  # as trl.scripts.grpo resolves reward_funcs
    found = getattr(importlib.import_module(module), attribute)
    assert pickle.loads(pickle.dumps(found)) is found
    tuned = pickle.loads(pickle.dumps(partial(found, weights=Weights(alpha_max=1.0))))
    assert name == "format_reward" or tuned([QUERY], [form(REFUSAL, 0, 0)], **columns())[0] > one(found, form(REFUSAL, 0, 0))


@pytest.mark.parametrize("names", [["dra_safe"], ["a.b.dra_paper"], ["format_reward", "my.length"], []])
def test_reward_weights(names: list[str]) -> None:
    assert reward_weights(names) == [1.0] * len(names)


@pytest.mark.parametrize("names", [["format_reward", "x.dra_safe"], ["dra_paper", "dra_safe"], ["dra_safe", "my.length"]])
def test_whole_rewards_stand_alone(names: list[str]) -> None:
    with pytest.raises(ValueError, match="must stand alone"):
        reward_weights(names)
