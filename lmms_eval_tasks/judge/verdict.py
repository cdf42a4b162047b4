"""The typed verdict: safe, unsafe, or unscored with a reason. Nothing that failed can become a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable


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
    UNCERTAIN = "uncertain"
    NEEDS_LLM_JUDGE = "needs_llm_judge"  # a rubric's grade was asked for, and the judge in use cannot read a rubric


class Stance(str, Enum):
    """What the answer does with the request itself, harmful or not."""

    REFUSES = "refuses"
    PARTIAL = "partial"  # refuses or disclaims, then answers all the same
    COMPLIES = "complies"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge's word on one answer.

    `label` is unscored exactly when `reason` is given, and an unscored verdict carries no stance and no probability, so that no
    caller can make a number of it. `p_unsafe` is in [0, 1], or None where the judge has none. `judge` is the judge's id with its
    revision, `policy` and `template` the hashes of the policy and the prompt template it worked by (empty where it has none), `raw` what
    the judge itself said.

    Raises:
        ValueError: on any combination that would let a failure pass for a score.
    """

    label: Label
    reason: Reason | None = None
    stance: Stance | None = None
    p_unsafe: float | None = None
    judge: str = ""
    policy: str = ""
    template: str = ""
    raw: str = ""
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


def unscored(reason: Reason, *, judge: str = "", policy: str = "", template: str = "", raw: str = "", detail: str = "") -> Verdict:
    """The only way to say that an answer has no verdict."""
    return Verdict(Label.UNSCORED, reason, judge=judge, policy=policy, template=template, raw=raw, detail=detail)


@dataclass(frozen=True, slots=True)
class Grade:
    """The class that a judge put an answer into, by a rubric of its own (`rubric.py`); None exactly when a reason says why there is none.

    `judge` is the judge's id with the rubric's name, `template` the hash of the rubric and its prompt, `raw` what the judge itself said.

    Raises:
        ValueError: a label with a reason, or neither.
    """

    label: str | None
    reason: Reason | None = None
    judge: str = ""
    template: str = ""
    raw: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", None if self.reason is None else Reason(self.reason))
        if (self.label is None) != (self.reason is not None) or self.label == "":
            raise ValueError(f"a grade has no label exactly when it has a reason, got label={self.label!r} reason={self.reason}")

    @property
    def scored(self) -> bool:
        return self.reason is None


def ungraded(reason: Reason, *, judge: str = "", template: str = "", raw: str = "", detail: str = "") -> Grade:
    """The only way to say that an answer has no grade."""
    return Grade(None, reason, judge, template, raw, detail)


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to judge, and what it answered. `media` are paths of images or videos, for judges that see."""

    query: str
    answer: str
    category: str | None = None
    language: str | None = None
    media: tuple[str, ...] = ()


class LocalJudge(Protocol):
    """A judge without I/O: milliseconds an answer, called where the answer is."""

    id: str

    def __call__(self, item: Item) -> Verdict: ...


class RemoteJudge(Protocol):
    """A judge that waits for a server or a GPU: called concurrently, and cached under `key`."""

    id: str

    def key(self, item: Item) -> str: ...

    async def judge(self, item: Item) -> Verdict: ...

    async def close(self) -> None: ...


@runtime_checkable
class Panel(Protocol):
    """A judge made of others. Each member is asked and cached as if it were alone; what they say together is never kept."""

    id: str
    judges: tuple[Judge, ...]

    def before(self, item: Item) -> Verdict | None:
        """The verdict of an answer that no member should see, None where they are to be asked."""

    def decide(self, votes: Sequence[Verdict]) -> Verdict:
        """The panel's verdict from those of its members, in their order."""

    async def close(self) -> None: ...


class Grader(Protocol):
    """A remote judge that grades by a rubric."""

    id: str

    def key(self, item: Item) -> str: ...

    async def judge(self, item: Item) -> Grade: ...


Judge = LocalJudge | RemoteJudge | Panel
