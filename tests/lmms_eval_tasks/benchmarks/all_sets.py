"""Every task built as lmms-eval builds it, on the small local copies that the sets_*.py beside this file write, and asked by a spy.

    python tests/lmms_eval_tasks/benchmarks/all_sets.py      # writes prompts.json anew: look at the diff, and bump versions

prompts.json holds the first prompt of every task, media by kind, so that a change of wording is seen in review.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts.json"
REFUSAL = "I'm sorry, but I can't help with that."
FAILED = "[LMMS_EVAL_REQUEST_FAILED after 5 retries] connection refused"
if __name__ == "__main__":  # as pytest sets it
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp()}
    os.environ.setdefault("VIDEOSAFETY_CACHE_DIR", tempfile.mkdtemp())

import pytest  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.evaluator import evaluate  # noqa: E402
from lmms_eval.tasks import TaskManager, get_task_dict  # noqa: E402

from videosafety.lmms_eval_tasks.plugin import TASKS  # noqa: E402


class Spy(lmms):
    """A chat model that notes what it is shown and answers always the same."""

    is_simple = False

    def __init__(self) -> None:
        super().__init__()
        self.answer = REFUSAL
        self.shown: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.shown.clear()
        for request in requests:
            _, doc_to_messages, settings, doc_id, task, split = request.args
            self.shown.append((doc_to_messages(self.task_dict[task][split][doc_id]), settings))
        return [self.answer] * len(requests)

    def clean(self) -> None:
        """Nothing to free; lmms-eval's own way collects garbage for seconds, after every task."""

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


@dataclass
class Asked:
    """One task, built and run twice: the spy refuses all, then fails at all."""

    task: Any
    docs: list[dict[str, Any]]
    messages: list[list[dict[str, Any]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Any] = field(default_factory=dict)  # metric -> figure
    failed: dict[str, Any] = field(default_factory=dict)


@contextmanager
def copies(root: Path) -> Iterator[Path]:
    """VIDEOSAFETY_DATA_DIR with a small copy of every set, and sets that ship cut short."""
    writers = [importlib.import_module(file.stem) for file in sorted(HERE.glob("sets_*.py"))]
    with pytest.MonkeyPatch.context() as patch:
        for writer in writers:
            if hasattr(writer, "local_copy"):
                writer.local_copy(root)
            if hasattr(writer, "shrink"):
                writer.shrink(patch)
        patch.setenv("VIDEOSAFETY_DATA_DIR", str(root))
        patch.delenv("VIDEOSAFETY_JUDGE", raising=False)
        yield root


@cache
def manager() -> TaskManager:
    return TaskManager(include_path=TASKS, include_defaults=False)


@cache
def ask(name: str) -> Asked:
    """Build a task and run it through lmms-eval's own evaluator; within `copies`."""
    task = get_task_dict([name], manager(), "chat")[name]
    asked = Asked(task, list(task.test_docs()))
    spy = Spy()
    asked.refused = figures(spy, name, task)
    asked.messages, asked.settings = [messages for messages, _ in spy.shown], spy.shown[0][1]
    spy.answer = FAILED
    asked.failed = figures(spy, name, task)
    return asked


def figures(spy: Spy, name: str, task: Any) -> dict[str, Any]:
    """metric -> figure of one run."""
    spy.task_dict = {name: task.dataset}  # as lmms-eval sets it
    results = evaluate(lm=spy, task_dict={name: task}, bootstrap_iters=0, verbosity="ERROR")["results"][name]
    return {key.partition(",")[0]: value for key, value in results.items() if key.endswith(",none") and "_stderr" not in key}


def prompt(name: str) -> list[dict[str, Any]]:
    """The first prompt of a task, with media by their kind."""
    return [
        {
            "role": message["role"],
            "content": [part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"]],
        }
        for message in ask(name).messages[0]
    ]


def main() -> None:
    from videosafety.lmms_eval_tasks.catalog import catalog

    names = sorted(task.name for found in catalog().values() for task in found.tasks)
    with tempfile.TemporaryDirectory() as root, copies(Path(root)):
        snapshot = {name: prompt(name) for name in names}
    PROMPTS.write_text(json.dumps(snapshot, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{PROMPTS}: {len(snapshot)} prompts")


if __name__ == "__main__":
    main()
