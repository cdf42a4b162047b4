"""Benchmarks whose own judge is a language model with its own prompt and classes: a rubric, and grades by it. Needs an LLM judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from videosafety.lmms_eval_tasks.judge import get_judge, judge_spec
from videosafety.lmms_eval_tasks.judge.pending import Pending, submit_grade
from videosafety.lmms_eval_tasks.judge.prompt import Template
from videosafety.lmms_eval_tasks.judge.verdict import Grade, Item, Label, Reason, ungraded
from videosafety.lmms_eval_tasks.metrics import RECORD_KEYS

__all__ = ["Grade", "Rubric", "grade", "graded"]

SHOWS = ("query", "answer", "reference", "warning", "image")
RUBRIC_TEMPLATE = Template("rubric.jinja")
LLM_JUDGES = ("openai", "local")
NOT_COUNTED = "grade_not_counted"  # there is a grade, and this metric counts no answer of that class


@dataclass(frozen=True, slots=True)
class Rubric:
    """A benchmark's own classes and how its judge is told to choose among them.

    name: with a revision, such as "mssbench_chat@1". instructions: the grader's task and what each class means; how to reply and how the
    data come is added to it. labels: the classes, each with the verdict it means, None where it means neither. shows: what the grader is
    shown, of "query", "answer", "reference", "warning" and "image"; the texts stand in the data in this order. hash: of all words that
    the grader reads, beside the row's.

    Raises:
        ValueError: a part is missing, or not one of those named.
    """

    name: str
    instructions: str
    labels: dict[str, Label | None]
    shows: tuple[str, ...]
    hash: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        unknown = set(self.shows) - set(SHOWS)
        if unknown or "answer" not in self.shows or len(set(self.shows)) < len(self.shows):
            raise ValueError(f"rubric {self.name}: shows must hold answer and any of {', '.join(SHOWS)}, once each, got {self.shows}")
        if len({label.strip().casefold() for label in self.labels} - {""}) < max(2, len(self.labels)):
            raise ValueError(f"rubric {self.name}: two labels or more are needed that differ in more than case, got {list(self.labels)}")
        if not self.instructions.strip() or "@" not in self.name:
            raise ValueError(f"rubric {self.name!r}: it needs instructions, and a name with a revision, such as mssbench_chat@1")
        written = [RUBRIC_TEMPLATE.hash, self.name, self.instructions, list(self.labels), self.shows]
        object.__setattr__(self, "hash", hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16])

    def safe(self, label: str) -> float | None:
        """1.0 where the class means safe, 0.0 unsafe, None neither: the score that a DSR averages."""
        meant = self.labels[label]
        return None if meant is None else float(meant is Label.SAFE)


def grade(rubric: Rubric, answer: str, *, query: str = "", extra: Mapping[str, str] = {}, media: tuple[str, ...] = ()) -> Future[Grade]:
    """Have an answer graded in the background by the LLM judge that VIDEOSAFETY_JUDGE names, through the same cache as verdicts.

    Args:
        answer: as the model gave it; its thinking is set apart, and what failed or is empty is unscored and not sent.
        extra: the texts for "reference" and "warning" where the rubric shows them.
        media: paths of the row's images and videos, shown where the rubric shows the image; of videos `?images=N` frames (8 without).

    Returns:
        A future that never holds an exception. With a judge that reads no rubric the grade is unscored(needs_llm_judge), and no network
        is touched.

    Raises:
        ValueError: the rubric shows a text that `extra` lacks, or VIDEOSAFETY_JUDGE names no judge.
    """
    missing = [name for name in ("reference", "warning") if name in rubric.shows and name not in extra]
    if missing:
        raise ValueError(f"rubric {rubric.name} shows {' and '.join(missing)}: give it in `extra`")
    spec = judge_spec()
    if spec.partition(":")[0] not in LLM_JUDGES:
        future: Future[Grade] = Future()
        told = f"{rubric.name} is graded by a language model: set VIDEOSAFETY_JUDGE=openai:<model> or local:<url>#<model>, not {spec}"
        future.set_result(ungraded(Reason.NEEDS_LLM_JUDGE, judge=rubric.name, template=rubric.hash, detail=told))
        return future
    from videosafety.lmms_eval_tasks.judge.grader import RubricGrader

    texts = {"query": query, "answer": answer, **extra}
    shown = {name: texts[name] for name in rubric.shows if name != "image"}
    return submit_grade(RubricGrader(get_judge(spec), rubric, shown), Item(query, answer, media=media))


def graded(metric_scores: Mapping[str, Callable[[str], float | None]], doc: Mapping[str, Any], future: Future[Grade]) -> dict[str, Pending]:
    """One record a metric from one grade, for `metrics.share` and its like; each waits for the grade when it is read.

    metric_scores: metric -> what a label counts there, in [0, 1], or None where the metric counts no answer of that class. A record holds
    the doc's ids, `grade`, `reason`, `judge`, `template`, `raw` and `detail`, and `score` only where there is one.
    """
    return {
        metric: Pending({"video_id": doc.get("video_id")}, future, partial(_record, doc, to_score))
        for metric, to_score in metric_scores.items()
    }


def _record(doc: Mapping[str, Any], to_score: Callable[[str], float | None], given: Grade) -> dict[str, Any]:
    score = None if given.label is None else to_score(given.label)
    row = {key: doc[key] for key in RECORD_KEYS if doc.get(key) is not None}
    row |= {
        "grade": given.label,
        "reason": given.reason.value if given.reason else NOT_COUNTED if score is None else None,
        "judge": given.judge,
        "template": given.template,
        "detail": given.detail,
        **({"raw": given.raw} if given.raw else {}),
    }
    return row if score is None else row | {"score": score}
