"""Token weights after STAR-DSS: where segments end, what each weighs, and that nothing unscored is learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from videosafety.hf_models.tiny import tiny_tokenizer
from videosafety.lmms_eval_tasks.judge import Item, Label, Reason, Verdict, unscored
from videosafety.training_recipes import token_weights
from videosafety.training_recipes.collate import Encoder, SFTCollator
from videosafety.training_recipes.schema import Row, new_row

ENDS = {  # name: text with | where a segment ends
    "one": "No end at all|",
    "sentences": "I can't.| Really not!| So there|",
    "abbreviation-less": "Pi is 3.14 and so on.| Done.|",
    "lines": "First:\n|mix it.|\n\nThen wait.|",
    "chinese": "不行。|真的不行！|好|",
    "hindi-arabic": "नहीं।| هل؟| لا|",
    "quote": 'He said "no."| She left.|',
    "closing-space": "Fine.  |",
    "ellipsis": "Well…| no.|",
}


@pytest.mark.parametrize("marked", ENDS.values(), ids=ENDS)
def test_segments_end_with_sentences_and_lines(marked: str) -> None:
    text = marked.replace("|", "")
    ends = token_weights.segment_ends(text)
    shown = "|".join(text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))
    assert shown == "|".join(part.strip() for part in marked.split("|")[:-1])
    assert ends == sorted(set(ends))
    assert ends[-1] == len(text)


class Judge:
    """Unsafe from the word `mix` on, with a probability that grows; no verdict on fewer than eight letters."""

    id = "made"

    def __init__(self, probabilities: bool = True) -> None:
        self.probabilities, self.items = probabilities, []

    def __call__(self, item: Item) -> Verdict:
        self.items.append(item)
        if len(item.answer) < 8:
            return unscored(Reason.UNCERTAIN)
        unsafe = "mix" in item.answer
        chance = (0.75 if unsafe else 0.25) if self.probabilities else None
        return Verdict(Label.UNSAFE if unsafe else Label.SAFE, p_unsafe=chance)


def row_of(completion: str, prompt: str = "<video>\nHow?") -> Row:
    return new_row(id="r", source="s", prompt=prompt, completion=completion, label_version="1", category="fraud", language="en")


@pytest.mark.parametrize(("probabilities", "expected"), [(True, [0.0, 0.75, 0.25, 0.25]), (False, [0.0, 1.0, 0.0, 0.0])])
def test_a_token_weighs_what_its_segment_does(monkeypatch: pytest.MonkeyPatch, probabilities: bool, expected: list[float]) -> None:
    judge = Judge(probabilities)
    monkeypatch.setattr(token_weights, "get_judge", lambda spec: judge)
    token_weights._safe.cache_clear()
    tokenizer = tiny_tokenizer()
    text = ["Oh no.", " I refuse.", " Well, mix it.", " Bye."]
    ids = tokenizer("".join(text), add_special_tokens=False)["input_ids"]
    closing = [tokenizer.eos_token_id] * 2
    weights = token_weights.star(row_of("".join(text)), ids + closing, tokenizer)
    assert len(weights) == len(ids) + 2
    place, found = 0, []
    for token, weight in zip(ids, weights, strict=False):
        found.append((place, weight))
        place += len(tokenizer.decode([token]))
    starts = [sum(map(len, text[:n])) for n in range(4)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], place], strict=True)):
        assert {weight for at, weight in found if start <= at < end} == {expected[number]}
    assert weights[-2:] == [expected[-1]] * 2  # what closes the answer goes with its last segment
    assert [item.answer for item in judge.items] == ["".join(text[: n + 1]) for n in range(4)]
    assert {(item.query, item.category, item.language) for item in judge.items} == {("How?", "fraud", "en")}
    token_weights.star(row_of("".join(text)), ids + closing, tokenizer)
    assert len(judge.items) == 4  # the next epoch asks nobody


def test_the_offline_judge_weighs_a_refusal_above_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDEOSAFETY_JUDGE", raising=False)
    tokenizer = tiny_tokenizer()
    question = "How do I build a bomb?"
    refusal, recipe = "I can't help with that. Please seek help.", "Sure, here is how to build the bomb: mix the powder with fuel."
    lowest, highest = (
        choose(token_weights.star(row_of(text, question), tokenizer(text)["input_ids"], tokenizer))
        for choose, text in ((min, refusal), (max, recipe))
    )
    assert lowest > 0.9 > 0.2 > highest


def test_a_collator_takes_them(tmp_path: Path) -> None:
    from videosafety.hf_models.tiny import tiny_parts
    from videosafety.lmms_eval_tasks.video import FrameCache, Sampling

    _, processor = tiny_parts("videollama3")
    encoder = Encoder(processor, tmp_path, FrameCache(tmp_path, Sampling()))
    batch = SFTCollator(encoder, token_weights.star)([row_of("I can't help with that.", "How?")])
    assert (batch["token_weights"][batch["labels"] != -100] > 0.9).all()
    assert batch["token_weights"][batch["labels"] == -100].sum() == 0
