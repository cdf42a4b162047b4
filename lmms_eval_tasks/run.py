"""What this run was made with: a live dict that every task YAML puts into its metadata, so that results files carry it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.judge import get_judge, judge_spec
from videosafety.lmms_eval_tasks.judge.policy import policy, policy_hash

# lmms-eval copies a task's metadata into the results file after the model is built. The YAMLs reference this very object
# (`run: !function videosafety.lmms_eval_tasks.run.SETTINGS`), so whatever the model, the data and the judge note here is recorded.
SETTINGS: dict[str, Any] = {}


def note(part: str, facts: dict[str, Any]) -> None:
    """Record JSON-serialisable facts of one part of the run: `model`, `data`, `judge`, `policy` or `versions`."""
    SETTINGS.setdefault(part, {}).update(facts)


def start() -> None:
    """Record who judges, by which policy, with which versions. Every task calls it while it loads its rows.

    Raises:
        MissingData: the judge that VIDEOSAFETY_JUDGE names does not exist; the run ends before a model answers anything.
    """
    try:
        judge = get_judge(judge_spec())
    except ValueError as error:
        raise MissingData(f"videosafety: {error}") from error
    note("judge", {"spec": judge_spec(), "id": judge.id})
    note("policy", {"version": policy()["version"], "hash": policy_hash()})
    note("versions", {name: importlib.metadata.version(name) for name in ("videosafety", "lmms_eval", "transformers", "torch", "av")})
