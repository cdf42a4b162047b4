"""Two linear models over words, read from JSON: how harmless a question is on its face, and how harmful an answer's opening sounds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from itertools import combinations

from .features import kinds, topics
from .text import fold, split_thinking

_WORD = re.compile(r"[^\W_]{1,24}|[^\x00-\x7f]")
_LONG = 1000  # characters; what is longer hides its point, and its start is no reason to call it harmless
_OPENING, _OPENING_WORDS = 600, 40  # characters and words of an answer that are read
_KIND = 0.2  # the value of a kind of thing, and of a pair of them, where all words and pairs of words have 1 together (squared)


def _words(text: str) -> list[str]:
    """Words of folded text. Scripts without spaces count characters."""
    return [part for word in _WORD.findall(text) for part in (word if ord(word[0]) > 0x2E7F else [word])]


def _spread(names: set[str]) -> dict[str, float]:
    """Equal values whose squares add up to 1, so that long texts weigh no more than short ones."""
    return dict.fromkeys(sorted(names), len(names) ** -0.5 if names else 0.0)


def terms(question: str) -> dict[str, float]:
    """Words, pairs of words, topics, kinds of things and pairs of these two in a question, each with its value."""
    words = _words(fold(question)[:_LONG])
    pairs = {f"{a} {b}" for a, b in zip(["^", *words], [*words, "$"], strict=True)}
    found = sorted(kinds(question))
    both = [*found, *(f"{a}&{b}" for a, b in combinations(found, 2))]
    return _spread({*words, *pairs, *(name for name, on in topics(question).items() if on)}) | dict.fromkeys(both, _KIND)


def answer_terms(answer: str) -> dict[str, float]:
    """Words and pairs of words at the start of an answer, less its thinking, each with its value."""
    words = _words(fold(split_thinking(answer)[1])[:_OPENING])[:_OPENING_WORDS]
    return _spread({*words, *(f"{a} {b}" for a, b in zip(["^", *words], words, strict=False))})


def pair_terms(question: str, answer: str) -> dict[str, float]:
    """The terms of a question (`q `) and of the answer's opening (`a `), for the model of what sounds harmful."""
    return {"q " + term: value for term, value in terms(question).items()} | {
        "a " + term: value for term, value in answer_terms(answer).items()
    }


@dataclass(frozen=True)
class Words:
    """Weights of terms and a bias: their sum, each weight times the term's value, is a log odds."""

    weights: Mapping[str, float]
    bias: float

    def log_odds(self, found: Mapping[str, float]) -> float:
        """The log odds of what the model was trained to tell."""
        return self.bias + math.fsum(self.weights.get(term, 0.0) * value for term, value in found.items())

    def harmless(self, question: str) -> float:
        """The probability, in [0, 1], that a question is harmless on its face. 0 for one that is too long to tell."""
        return 1.0 / (1.0 + math.exp(-self.log_odds(terms(question)))) if len(question) <= _LONG else 0.0

    def dumps(self) -> str:
        """One JSON object, the same bytes for the same weights."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False, sort_keys=True) + "\n"


@cache
def shipped(name: str) -> Words:
    """Weights that come with the package: `questions` (harmless on its face) or `words` (sounds harmful)."""
    return Words(**json.loads(resources.files(__package__).joinpath("weights", name + ".json").read_text(encoding="utf-8")))
