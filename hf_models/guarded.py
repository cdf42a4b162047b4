"""Guarded generation: one prefill tells whether to answer; where an alarm is raised, a configured text stands in place of the answer.

A tool beside the published model files, not one of them; needs torch and transformers only. A flagged row stops after its first token, and
an unflagged one is generated as without a guard: the probabilities come from generate()'s own prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from videosafety.hf_models.calibrate import Calibration
from videosafety.hf_models.prompts import on_model, shown

REFUSAL = "I can't help with that: it may be harmful."


@dataclass(frozen=True, slots=True)
class Guarded:
    """An answer behind a guard. `text` is the refusal exactly where `flagged`. Probabilities in [0, 1]; `visual` is None where nothing is
    shown before its token, which stands in the first user turn, and either is None where the prompt has no such token."""

    text: str
    flagged: bool
    visual: float | None
    textual: float | None


class _StopFlagged(StoppingCriteria):
    """Ends the rows whose prompt raised an alarm. `seen` is what the prefill told, put there by a hook on the model."""

    def __init__(self, calibration: Calibration, shown: Sequence[bool]) -> None:
        self.calibration, self.shown = calibration, shown
        self.seen: list[tuple[float | None, float | None]] = []
        self.flagged: list[bool] = []

    def hear(self, module: Any, args: Any, output: Any) -> None:
        found = getattr(output, "alarm_probs", None)
        if found is None:  # a step of decoding
            return
        pairs = [(v if shown else None, t) for (v, t), shown in zip(map(_known, found.tolist()), self.shown, strict=True)]
        if self.seen:  # a prefill in chunks: each token is in one of them
            pairs = [
                (v if old[0] is None else old[0], t if old[1] is None else old[1]) for old, (v, t) in zip(self.seen, pairs, strict=True)
            ]
        self.seen = pairs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self.flagged:
            verdicts = [self.calibration.flagged(*pair) for pair in self.seen]
            if not verdicts or None in verdicts:
                raise ValueError("a prompt has no alarm token, so nothing guards it: make prompts with the model's own chat template")
            self.flagged = [bool(verdict) for verdict in verdicts]
        return torch.tensor(self.flagged, device=input_ids.device)


def _known(pair: Sequence[float]) -> tuple[float | None, float | None]:
    visual, textual = (None if p != p else float(p) for p in pair)
    return visual, textual


def generate_guarded(
    model: Any, processor: Any, inputs: Any, calibration: Calibration | None = None, refusal: str = REFUSAL, **generation: Any
) -> list[Guarded]:
    """The answers to a left-padded batch of prompts, with `refusal` wherever one raises an alarm.

    Args:
        model: an alarm model. processor: its own. inputs: the processor's tensors, with input_ids.
        calibration: the thresholds; see `calibrate.load_calibration`. generation: as for generate().

    Raises:
        ValueError: no alarm model, several sequences a prompt (beams or samples), or a prompt without alarm tokens.
    """
    if not hasattr(model, "alarm_probs"):
        raise ValueError(f"{type(model).__name__} has no alarm heads: make an alarm model of it with videosafety build-alarm, and train it")
    given = generation.get("generation_config") or model.generation_config
    if any((generation.get(name) or getattr(given, name, None) or 1) > 1 for name in ("num_beams", "num_return_sequences")):
        raise ValueError("guarded generation answers each prompt once: leave num_beams and num_return_sequences at 1")
    moved = on_model(inputs, model)
    prompts = moved["input_ids"]
    stop = _StopFlagged(calibration or Calibration(), shown=shown(model.config, prompts))
    others = list(generation.pop("stopping_criteria", ()))
    hook = model.register_forward_hook(stop.hear)
    try:
        with torch.inference_mode():
            output = model.generate(
                **moved, **generation, return_dict_in_generate=True, stopping_criteria=StoppingCriteriaList([stop, *others])
            )
    finally:
        hook.remove()
    texts = getattr(processor, "tokenizer", processor).batch_decode(output.sequences[:, prompts.shape[1] :], skip_special_tokens=True)
    rows = zip(texts, stop.flagged, stop.seen, strict=True)
    return [Guarded(refusal if flagged else text, flagged, *pair) for text, flagged, pair in rows]
