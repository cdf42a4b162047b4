"""Data that are not the whole set: the run says so, records it, and the report shows it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import all_sets
import pytest

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.catalog import catalog
from videosafety.lmms_eval_tasks.plugin import TASKS
from videosafety.lmms_eval_tasks.report.load import Run
from videosafety.lmms_eval_tasks.report.repeat import facts
from videosafety.lmms_eval_tasks.report.summary import warnings

# Every task whose data come from elsewhere and whose rows dataset.yml knows, with its set; a prompted twin has its rows from the plain one.
KNOWN = {
    task.name: (found.name, task.rows)
    for found in catalog().values()
    if found.source.kind != "own"
    for task in found.tasks
    if task.rows is not None and not task.name.endswith("_prompted")
}


@pytest.fixture(scope="module", autouse=True)
def _copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with all_sets.copies(tmp_path_factory.mktemp("data")):
        yield


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the run records of rows, empty at first."""
    rows: dict[str, Any] = {}
    monkeypatch.setitem(run.SETTINGS, "rows", rows)
    return rows


def loader(task: str) -> Any:
    """The function that the task's file names under process_docs."""
    [file] = Path(TASKS).glob(f"*/{task}.yaml")
    line = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("process_docs:"))
    module, _, name = line.split()[-1].rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("task", KNOWN)
def test_a_small_copy_of_every_set_is_told_from_the_whole_one(task: str, noted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    name, whole = KNOWN[task]
    found = loader(task)(None)
    assert noted == {task: f"{len(found)} of {whole}"}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"videosafety: WARNING: {task} has {len(found)} of {whole} rows, ")
    assert catalog()[name].title in line


@pytest.mark.parametrize(("task", "rows"), [("siuo_gen", 167), ("holisafe_typed_sss", 3)], ids=["as many as known", "none known"])
def test_nothing_is_said_where_nothing_is_known_to_be_missing(
    task: str, rows: int, noted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    noted[task] = "1 of 167"  # of an earlier run of the process
    assert len(run.counted(task, [{"id": str(n)} for n in range(rows)])) == rows
    assert noted == {}
    assert capsys.readouterr().err == ""


def test_more_rows_than_known_are_not_the_set_either(noted: dict[str, Any]) -> None:
    run.counted("siuo_gen", [{"id": str(n)} for n in range(168)])
    assert noted == {"siuo_gen": "168 of 167"}


def test_the_report_says_how_many_of_how_many_rows() -> None:
    configs = {"siuo_gen": {"metadata": {"run": {"rows": {"siuo_gen": "1 of 167"}}}}}
    reported = Run(Path("x_results.json"), "A", "20260101_0900", {"configs": configs, "results": {}}, {}, {})
    assert any("siuo_gen has 1 of 167 rows" in line for line in warnings(reported))
    assert ("Rows of siuo_gen", "1 of 167") in facts(reported)
    assert warnings(Run(Path("x_results.json"), "A", "", {"configs": {}, "results": {}}, {}, {})) == []
