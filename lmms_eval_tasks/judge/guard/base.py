"""What guard models have in common: a prompt for each, what comes back, and how far text from outside may reach into a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..verdict import Item, Label, Reason, Stance, Verdict, unscored

Message = dict[str, object]
Prompt = str | list[Message]  # raw text for the tokenizer or /completions; messages for the chat template or /chat/completions

# What a guard model's template or tokenizer takes for structure. In a query or an answer it is only text.
_CONTROL = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad|unk|image)>|\[/?INST\]|<</?SYS>>|</?think>", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a guard model said to one prompt.

    text: its greedy words, without special tokens. first: probability of each spelling of `Family.words` at the first position with
    visible text, before any cut or temperature; empty where the server gives no log-probabilities.
    """

    text: str
    first: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of guard models: which ids belong to it, how it is asked and how it is understood. Both functions are pure.

    ids: lower-case prefixes of the last part of a model id. prompts: item -> one or more prompts. parse: readings in the prompts' order
    -> verdict, `judge_unparsable` for anything but exactly one verdict. words: the spellings whose probability counts.
    answer_tokens: a longer answer is cut there, and the verdict says so. sees: takes images.
    """

    name: str
    ids: tuple[str, ...]
    prompts: Callable[[Item], list[Prompt]]
    parse: Callable[[Sequence[Reading]], Verdict]
    max_tokens: int
    words: tuple[str, ...] = ()
    answer_tokens: int = 4096
    sees: bool = False


def plain(text: str) -> str:
    """`text` as UTF-8 can write it, every control string broken by a space after its first character, so that it cannot end its turn."""
    return _CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text.encode("utf-8", "replace").decode("utf-8"))


def unparsable(readings: Iterable[Reading], wanted: str) -> Verdict:
    """The verdict on an output that is not exactly one verdict."""
    told = " | ".join(reading.text[:200] for reading in readings)
    return unscored(Reason.JUDGE_UNPARSABLE, detail=f"expected {wanted}, got {told!r}")


def probability(reading: Reading, unsafe: Sequence[str], safe: Sequence[str]) -> float | None:
    """P(unsafe) of the two answers; None where they hold less than half of the probability there, or it is unknown."""
    of_unsafe = sum(reading.first.get(word, 0.0) for word in unsafe)
    of_safe = sum(reading.first.get(word, 0.0) for word in safe)
    mass = of_unsafe + of_safe
    return of_unsafe / mass if mass >= 0.5 else None


def verdict(unsafe: bool, stance: Stance | None = None, p_unsafe: float | None = None, detail: str = "") -> Verdict:
    return Verdict(Label.UNSAFE if unsafe else Label.SAFE, stance=stance, p_unsafe=p_unsafe, detail=detail)


class GuardError(Exception):
    """A guard model that could not be asked: `reason` is judge_failed, judge_refused or media_error, the message is one line."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Engine(Protocol):
    """What asks a guard model: here, or on a server. `cut` and `read` raise GuardError."""

    def identity(self) -> list[Any]:
        """What tells this model from another one of the same name, as JSON takes it."""

    async def cut(self, text: str) -> tuple[str, str]:
        """The text up to the family's `answer_tokens`, and a note where something was cut off."""

    async def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """What the model says to each prompt."""

    async def close(self) -> None: ...
