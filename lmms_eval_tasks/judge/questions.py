"""How harmless a question is on its face: a linear model over its words and topics, read from JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources

from .features import topics
from .text import fold

_WORD = re.compile(r"[^\W_]{1,24}|[^\x00-\x7f]")
_LONG = 1000  # characters; what is longer hides its point, and its start is no reason to call it harmless


def terms(question: str) -> set[str]:
    """Words, pairs of words and topics of a question. Scripts without spaces count pairs of characters."""
    text = fold(question)[:_LONG]
    words = [part for word in _WORD.findall(text) for part in (word if ord(word[0]) > 0x2E7F else [word])]
    pairs = {f"{a} {b}" for a, b in zip(["^", *words], [*words, "$"], strict=True)}
    return {*words, *pairs, *(name for name, on in topics(question).items() if on)}


@dataclass(frozen=True)
class Questions:
    """Weights of terms; the sum over a question's terms, divided by the root of their number, gives the log odds of `harmless`."""

    weights: Mapping[str, float]
    bias: float

    def harmless(self, question: str) -> float:
        """The probability, in [0, 1], that a question is harmless on its face. 0 for one that is too long to tell."""
        if len(question) > _LONG:
            return 0.0
        found = terms(question)
        z = self.bias + sum(self.weights.get(term, 0.0) for term in sorted(found)) / math.sqrt(len(found) or 1)
        return 1.0 / (1.0 + math.exp(-z))

    def dumps(self) -> str:
        """One JSON object, the same bytes for the same weights."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False, sort_keys=True) + "\n"


@cache
def shipped() -> Questions:
    """The weights that come with the package."""
    return Questions(**json.loads(resources.files(__package__).joinpath("weights", "questions.json").read_text(encoding="utf-8")))
