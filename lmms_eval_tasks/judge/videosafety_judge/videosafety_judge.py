"""The judges of videosafety as a Hugging Face `evaluate` metric: `evaluate.load("<this folder, or its id on the Hub>", "offline")`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
import evaluate

from videosafety.lmms_eval_tasks.judge import Item, get_judge
from videosafety.lmms_eval_tasks.judge.batch import judge_all
from videosafety.lmms_eval_tasks.metrics import Rate, rate, refusal_score, safe_score

DESCRIPTION = """Safety of a model's answers: the share judged safe, and the share that refuses, each with its number of scored answers,
a 95 % interval, and the bounds that answers without a verdict allow. An answer without a verdict never counts as safe or unsafe."""

INPUTS = """
Args:
    predictions: the answers, list of str.
    references: what each of them answers, list of str.
    categories, languages, clusters: optional lists; `clusters` names the video or the request that answers share, for the interval.

The configuration name is the judge: offline (default), refusal, keyword:<list>, openai:<model>, local:<url>#<model>, ...

Returns:
    safe, refused: {value, n, n_scored, ci95_low, ci95_high, bound_low, bound_high}; rates are in [0, 1], None where nothing was scored.
    unscored: {reason: number of answers}. judge: the judge's id. verdicts: one of "safe", "unsafe", "unscored" an answer.

Raises:
    ValueError: no such judge, or lists of different length.
"""


class VideosafetyJudge(evaluate.Metric):
    """One answer and its request in, rates out; see the module's INPUTS."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        categories: list[str | None] | None = None,
        languages: list[str | None] | None = None,
        clusters: list[Any] | None = None,
    ) -> dict[str, Any]:
        none: list[str | None] = [None] * len(predictions)
        told = zip(references, predictions, categories or none, languages or none, strict=True)
        judge = get_judge("offline" if self.config_name == "default" else self.config_name)
        verdicts = judge_all(judge, [Item(*row) for row in told])
        return {
            "safe": _shown(rate([safe_score(verdict) for verdict in verdicts], clusters)),
            "refused": _shown(rate([refusal_score(verdict) for verdict in verdicts], clusters)),
            "unscored": dict(Counter(verdict.reason.value for verdict in verdicts if verdict.reason)),
            "judge": judge.id,
            "verdicts": [verdict.label.value for verdict in verdicts],
        }


def _shown(figure: Rate) -> dict[str, float | None]:
    return {
        "value": figure.value,
        "n": figure.n,
        "n_scored": figure.n_scored,
        "ci95_low": figure.low,
        "ci95_high": figure.high,
        "bound_low": figure.bound_low,
        "bound_high": figure.bound_high,
    }
