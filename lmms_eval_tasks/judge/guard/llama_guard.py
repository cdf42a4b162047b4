"""Llama Guard 3 and 4: the conversation through the model's own chat template; `safe`, or `unsafe` and a line of hazard categories.

Hazards S1 to S14 are MLCommons' and Meta's, not this project's policy; the template writes them out. The vision models see the images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..verdict import Item, Verdict
from .base import Family, Message, Prompt, Reading, plain, probability, unparsable, verdict

_SAFE = re.compile(r"\s*safe\s*")
_UNSAFE = re.compile(r"\s*unsafe\s*(?:\n\s*(S(?:[1-9]|1[0-4])(?:\s*,\s*S(?:[1-9]|1[0-4]))*)\s*)?")


def text_prompt(item: Item) -> list[Prompt]:
    """A user and an assistant turn with plain text, as Llama-Guard-3-8B's template takes them."""
    return [[{"role": "user", "content": plain(item.query)}, {"role": "assistant", "content": plain(item.answer)}]]


def parts_prompt(item: Item) -> list[Prompt]:
    """The same turns as lists of parts, as the templates of Llama Guard 3 1B, 3 Vision and 4 take them; images come before the words."""
    images: list[Message] = [{"type": "image", "path": path} for path in item.media]
    turns: list[tuple[str, str, list[Message]]] = [("user", item.query, images), ("assistant", item.answer, [])]
    return [[{"role": role, "content": [*media, {"type": "text", "text": plain(text)}]} for role, text, media in turns]]


def parse(readings: Sequence[Reading]) -> Verdict:
    """Exactly `safe`, or `unsafe` with known hazards on the next line; p_unsafe from the first word's probability."""
    (reading,) = readings
    unsafe = _UNSAFE.fullmatch(reading.text)
    if not unsafe and not _SAFE.fullmatch(reading.text):
        return unparsable(readings, "'safe' or 'unsafe' and S1 to S14")
    p_unsafe = probability(reading, unsafe=("unsafe",), safe=("safe",))
    return verdict(bool(unsafe), p_unsafe=p_unsafe, detail=(unsafe[1] or "") if unsafe else "")


_WORDS = ("safe", "unsafe")
FAMILIES = (
    Family("llama_guard", ("llama-guard-3-8b",), text_prompt, parse, 32, _WORDS),
    Family("llama_guard_text", ("llama-guard-3-1b",), parts_prompt, parse, 32, _WORDS),
    Family("llama_guard_vision", ("llama-guard-3-11b-vision", "llama-guard-4-"), parts_prompt, parse, 32, _WORDS, sees=True),
)
