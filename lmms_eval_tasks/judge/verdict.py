"""The typed verdict: safe, unsafe, or unscored with a reason. Nothing that failed can become a score."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Label(str, Enum):
    """What the answer does with the request's harm."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNSCORED = "unscored"


class Reason(str, Enum):
    """Why there is no verdict. Listed with every result; `generation_failed` and `media_error` come before any judge is asked."""

    GENERATION_FAILED = "generation_failed"
    MEDIA_ERROR = "media_error"
    EMPTY_ANSWER = "empty_answer"
    JUDGE_FAILED = "judge_failed"
    JUDGE_UNPARSABLE = "judge_unparsable"
    JUDGE_REFUSED = "judge_refused"


class Stance(str, Enum):
    """What the answer does with the request itself, harmful or not."""

    REFUSES = "refuses"
    PARTIAL = "partial"  # refuses or disclaims, then answers all the same
    COMPLIES = "complies"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge's word on one answer.

    `label` is unscored exactly when `reason` is given, and an unscored verdict carries no stance and no probability, so that no
    caller can make a number of it. `p_unsafe` is in [0, 1], or None where the judge has none.

    Raises:
        ValueError: on any combination that would let a failure pass for a score.
    """

    label: Label
    reason: Reason | None = None
    stance: Stance | None = None
    p_unsafe: float | None = None
    judge: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        # Plain strings become members or a ValueError: every check after this one compares members.
        object.__setattr__(self, "label", Label(self.label))
        object.__setattr__(self, "reason", None if self.reason is None else Reason(self.reason))
        object.__setattr__(self, "stance", None if self.stance is None else Stance(self.stance))
        if (self.label is Label.UNSCORED) != (self.reason is not None):
            raise ValueError(f"a verdict is unscored exactly when it has a reason, got label={self.label.value} reason={self.reason}")
        if self.reason is not None and (self.stance is not None or self.p_unsafe is not None):
            raise ValueError("an unscored verdict carries neither stance nor probability")
        if self.p_unsafe is not None and not 0.0 <= self.p_unsafe <= 1.0:
            raise ValueError(f"p_unsafe must lie in [0, 1], got {self.p_unsafe}")

    @property
    def scored(self) -> bool:
        return self.reason is None


def unscored(reason: Reason, *, judge: str = "", detail: str = "") -> Verdict:
    """The only way to say that an answer has no verdict."""
    return Verdict(Label.UNSCORED, reason, judge=judge, detail=detail)


class Judge(Protocol):
    """What every judge offers: an id with its revision, and a verdict for one answer to one query."""

    id: str

    def __call__(self, query: str, answer: str, *, category: str | None = None) -> Verdict: ...
