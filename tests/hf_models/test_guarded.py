"""Guarded generation: the refusal exactly where an alarm is raised, everything else as without a guard, and no second prefill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_model import alarm, guard, media  # noqa: F401

from videosafety.hf_models.calibrate import Calibration, Threshold
from videosafety.hf_models.guard import Decoder, Guard, Row, _request
from videosafety.hf_models.guarded import REFUSAL, generate_guarded
from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks.inputs import model_inputs
from videosafety.lmms_eval_tasks.pipeline import load
from videosafety.lmms_eval_tasks.video import Sampling

NEVER = Calibration(Threshold(1.0), Threshold(1.0))
ALWAYS = Calibration(Threshold(0.0), Threshold(0.0))
Inputs = Callable[..., Any]


@pytest.fixture
def prompts(guard: Guard, media: Path) -> Inputs:
    """The processor's tensors of video rows with these words, or of text rows with `video=None`."""

    def make(*texts: str, video: str | None = "a.mp4") -> Any:
        rows = [Row(text, text, video=media / video if video else None) for text in texts]
        return model_inputs(guard.processor, [load(_request(i, row), Decoder(Sampling())) for i, row in enumerate(rows)])

    return make


def plainly(guard: Guard, inputs: Any, **generation: Any) -> list[str]:
    with torch.no_grad():
        out = guard.model.generate(**inputs, **generation)
    return guard.processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_without_an_alarm_the_answer_is_the_models_own(guard: Guard, prompts: Inputs) -> None:
    inputs = prompts("What happens?", "Who walks along the street?")
    found = generate_guarded(guard.model, guard.processor, inputs, NEVER, max_new_tokens=8)
    assert [g.text for g in found] == plainly(guard, inputs, max_new_tokens=8)
    assert not any(g.flagged for g in found)
    for g, (visual, textual) in zip(found, guard.of_inputs(inputs).tolist(), strict=True):
        assert (g.visual, g.textual) == pytest.approx((visual, textual), abs=1e-5)


def test_with_an_alarm_the_refusal_stands_there_after_one_step(guard: Guard, prompts: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    backbone = guard.model.base_model.forward
    monkeypatch.setattr(guard.model.base_model, "forward", lambda *a, **k: (calls.append(1), backbone(*a, **k))[1])
    found = generate_guarded(guard.model, guard.processor, prompts("a", "b"), ALWAYS, max_new_tokens=8)
    assert [(g.text, g.flagged) for g in found] == [(REFUSAL, True)] * 2
    assert len(calls) == 1, "one prefill, nothing decoded"
    assert generate_guarded(guard.model, guard.processor, prompts("a"), ALWAYS, "Nope.", max_new_tokens=2)[0].text == "Nope."


def test_in_a_batch_each_row_has_its_own_verdict(guard: Guard, prompts: Inputs) -> None:
    inputs = prompts("What happens?", "Who walks along the street?", "Is it safe?")
    textual = guard.of_inputs(inputs)[:, 1].tolist()
    middle = sorted(textual)[1]
    calibration = Calibration(Threshold(1.0), Threshold(middle))  # one row lies above it
    found = generate_guarded(guard.model, guard.processor, inputs, calibration, max_new_tokens=8)
    own = plainly(guard, inputs, max_new_tokens=8)
    assert [g.flagged for g in found] == [p > middle for p in textual]
    assert sum(g.flagged for g in found) == 1
    assert [g.text for g in found] == [REFUSAL if g.flagged else text for g, text in zip(found, own, strict=True)]


def test_where_nothing_is_shown_the_visual_head_has_no_say(guard: Guard, prompts: Inputs) -> None:
    inputs = prompts("Only text.", video=None)
    assert guard.of_inputs(inputs)[0, 0] > 0, "the token stands in every prompt"
    found = generate_guarded(guard.model, guard.processor, inputs, Calibration(Threshold(0.0), Threshold(1.0)), max_new_tokens=2)
    assert (found[0].visual, found[0].flagged) == (None, False)


def test_a_prefill_in_chunks_is_guarded_too(guard: Guard, prompts: Inputs) -> None:
    inputs = prompts("Only text, and a good deal of it, so that there is more than one chunk.", video=None)
    whole = generate_guarded(guard.model, guard.processor, inputs, NEVER, max_new_tokens=4)
    parts = generate_guarded(guard.model, guard.processor, inputs, NEVER, max_new_tokens=4, prefill_chunk_size=16)
    assert parts[0].textual == pytest.approx(whole[0].textual, abs=1e-5)
    assert parts[0].text == whole[0].text


def test_criteria_of_the_callers_still_count(guard: Guard, prompts: Inputs) -> None:
    lengths: list[int] = []

    def after_two(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return torch.full((len(ids),), len(lengths) >= 2)

    generate_guarded(guard.model, guard.processor, prompts("What?"), NEVER, max_new_tokens=8, stopping_criteria=[after_two])
    assert len(lengths) == 2


def test_the_model_is_left_as_it_was(guard: Guard, prompts: Inputs) -> None:
    before = len(guard.model._forward_hooks)
    with pytest.raises(ValueError, match="max_new_token"):
        generate_guarded(guard.model, guard.processor, prompts("What?"), NEVER, max_new_token=8)
    generate_guarded(guard.model, guard.processor, prompts("What?"), NEVER, max_new_tokens=2)
    assert len(guard.model._forward_hooks) == before


def test_a_prompt_without_alarm_tokens_is_refused(guard: Guard) -> None:
    inputs = guard.processor.tokenizer(["No template here."], return_tensors="pt")
    with pytest.raises(ValueError, match="no alarm token, so nothing guards it"):
        generate_guarded(guard.model, guard.processor, inputs, NEVER, max_new_tokens=2)


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_several_answers_a_prompt_are_refused(guard: Guard, prompts: Inputs, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="answers each prompt once"):
        generate_guarded(guard.model, guard.processor, prompts("What?"), NEVER, max_new_tokens=2, **setting)


def test_a_model_without_heads_is_refused(guard: Guard, prompts: Inputs, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    plain = AutoModelForImageTextToText.from_pretrained(build_tiny(tmp_path / "plain", alarm=False))
    with pytest.raises(ValueError, match="has no alarm heads"):
        generate_guarded(plain, guard.processor, prompts("What?"), NEVER)
