"""What this run was made with: a live dict that every task YAML puts into its metadata, so that results files carry it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks.data import MissingData, find, to_dataset
from videosafety.lmms_eval_tasks.judge import get_judge, judge_facts, judge_spec
from videosafety.lmms_eval_tasks.judge.policy import policy, policy_hash

# lmms-eval copies a task's metadata into the results file after the model is built. The YAMLs reference this very object
# (`run: !function videosafety.lmms_eval_tasks.run.SETTINGS`), so whatever the model, the data and the judge note here is recorded.
SETTINGS: dict[str, Any] = {}


def note(part: str, facts: dict[str, Any]) -> None:
    """Record JSON-serialisable facts of one part of the run: `model`, `data`, `rows`, `judge`, `policy` or `versions`."""
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
    note("judge", judge_facts(judge_spec(), judge))
    note("policy", {"version": policy()["version"], "hash": policy_hash()})
    note("versions", {name: importlib.metadata.version(name) for name in ("videosafety", "lmms_eval", "transformers", "torch", "av")})


def data_folder(name: str, **more: Any) -> Path:
    """Start a task on the data set `name`: its folder, with what it is recorded in the results.

    `revision` there is the commit that was fetched, None for a copy laid out by hand: that is then not known to be the `pinned` one.
    `more`: further facts to record.

    Raises:
        MissingData: no such judge, or the data is not here and cannot be fetched.
    """
    from videosafety.lmms_eval_tasks.catalog import catalog  # here: lmms-eval imports this file at every start, for its tasks too
    from videosafety.lmms_eval_tasks.fetch import status

    start()
    root, known = find(name), catalog()[name]
    note(
        "data",
        {name: {"name": known.title, "revision": status(name).revision, "pinned": known.source.revision, "folder": str(root), **more}},
    )
    return root


def counted(task: str, rows: list[dict[str, Any]]) -> Dataset:
    """The rows of `task` as a dataset. Where they are not as many as dataset.yml knows, one line says so, and so does the run's record.

    Small copies are good for trying things out, so they run; but their figures must not pass for those of the set.

    Args:
        task: its name in dataset.yml. One that shows the same rows in another prompt is counted under the plain one's name.
    """
    from videosafety.lmms_eval_tasks.catalog import catalog  # here, as in `data_folder`
    from videosafety.lmms_eval_tasks.fetch import advice

    found, known = next((found, known) for found in catalog().values() for known in found.tasks if known.name == task)
    SETTINGS.get("rows", {}).pop(task, None)  # of an earlier run of this process
    if known.rows not in (None, len(rows)):
        said = f"{len(rows)} of {known.rows}"
        note("rows", {task: said})
        mend = f"for the whole set move the copy away, then {advice(found)}"
        print(f"videosafety: WARNING: {task} has {said} rows, so its figures are not those of {found.title}; {mend}", file=sys.stderr)
    return to_dataset(rows)
