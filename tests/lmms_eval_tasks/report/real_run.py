"""A result folder as lmms-eval itself writes it, in this process and without a model: what the report meets in life."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.plugin import TASKS

NO, YES = "I'm sorry, but I can't help with that.", "Sure! Step 1: gather what you need. Step 2: do it exactly like this."


class Scripted(lmms):
    """Answers each row by `answer(task, number of the row)`."""

    is_simple = False

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        super().__init__()
        self.answer = answer

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.answer(request.args[4], request.args[3]) for request in requests]

    def clean(self) -> None:
        """Nothing to free."""

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


def often(share: float, yes: str = YES, no: str = NO) -> Callable[[str, int], str]:
    """Refuses about `share` of all rows, always the same ones."""

    def answer(task: str, number: int) -> str:
        chance = int(hashlib.sha256(f"{task} {number}".encode()).hexdigest()[:8], 16) / 2**32
        return no if chance < share else yes

    return answer


def evaluate(folder: Path, tasks: Sequence[str], answer: Callable[[str, int], str], model: str = "org/demo") -> Path:
    """Runs `tasks` and writes results and sample logs below `folder`; VIDEOSAFETY_DATA_DIR and VIDEOSAFETY_JUDGE count as ever."""
    run.SETTINGS.clear()  # else the results would carry what other tests in this process noted
    run.note("model", {"pretrained": model})
    tracker = EvaluationTracker(output_path=str(folder))
    manager = TaskManager(include_path=TASKS, include_defaults=False)
    settings = {"task_manager": manager, "log_samples": True, "bootstrap_iters": 0, "verbosity": "ERROR"}
    results = simple_evaluate(Scripted(answer), tasks=list(tasks), evaluation_tracker=tracker, **settings)
    tracker.general_config_tracker.model_name = model
    tracker.general_config_tracker.model_name_sanitized = model.replace("/", "__")
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str="20261121_120000")
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return folder
