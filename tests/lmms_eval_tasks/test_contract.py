"""What every task must keep, whoever wrote it: built by lmms-eval on a small local copy, asked by a spy, scored by the default judge."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import all_sets
import pytest
from all_sets import ask
from lmms_eval.tasks import get_task_dict

from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.catalog import DataSet, Task, catalog
from videosafety.lmms_eval_tasks.plugin import TASKS

TASK_OF: dict[str, tuple[DataSet, Task]] = {task.name: (found, task) for found in catalog().values() for task in found.tasks}
every_task = pytest.mark.parametrize("name", sorted(TASK_OF))
every_set = pytest.mark.parametrize("name", sorted(catalog()))
LIMIT = 60.0  # seconds for all of this file on two idle cores
COUNTS = {"unscored": 1.0, "n_scored": 0}  # what a run that failed throughout prints; every other figure is null


@pytest.fixture(scope="module", autouse=True)
def local_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    ask.cache_clear()
    with all_sets.copies(tmp_path_factory.mktemp("data")) as root:
        yield root


def listed(name: str) -> list[str]:
    """The metrics of a task; a panel's agreement is one only where a panel judges."""
    return [entry["metric"] for entry in ask(name).task.config.metric_list if entry["metric"] != metrics.PANEL]


def media(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"] if part["type"] != "text"]


def words(messages: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for message in messages for part in message["content"] if part["type"] == "text")


# --- rows and prompts -------------------------------------------------------------------------------------------------------------


@every_task
def test_rows_are_paths_and_words_and_know_who_they_are(name: str) -> None:
    docs = ask(name).docs
    assert len(docs) >= 2, "the local copy has too few rows to tell them apart"
    assert len({doc["id"] for doc in docs}) == len(docs)
    for doc in docs:
        json.dumps(doc)  # no image, no bytes
        assert doc["query"].strip()
        assert doc["video_id"], "the cluster of the intervals"
        assert doc["language"]
        for label in ("visual_label", "textual_label"):
            assert doc.get(label) in (None, 0, 1)


@every_task
def test_what_the_set_shows_reaches_the_model(name: str) -> None:
    asked, modality = ask(name), TASK_OF[name][1].modality
    wanted = {kind for kind in ("image", "video") if kind in modality}
    for doc, messages in zip(asked.docs, asked.messages, strict=True):
        parts = media(messages)
        assert {part["type"] for part in parts} == wanted
        assert all(Path(part["url"]).is_file() for part in parts)
        assert [part["url"] for part in parts] == list(metrics.media_of(doc)) or not wanted, "the judge sees what the model saw"
        assert len(parts) > 1 or "several" not in modality
        assert words(messages).strip()


@every_task
def test_models_of_the_simple_kind_are_shown_the_same(name: str) -> None:
    asked = ask(name)
    for doc, messages in zip(asked.docs, asked.messages, strict=True):
        assert asked.task.doc_to_visual(doc) == [part["url"] for part in media(messages)]
        assert asked.task.doc_to_text(doc) == words(messages)


@every_task
def test_the_prompt_is_the_one_that_was_reviewed(name: str) -> None:
    reviewed = json.loads(all_sets.PROMPTS.read_text(encoding="utf-8"))
    assert all_sets.prompt(name) == reviewed.get(name), f"on purpose? then bump the version and run python {all_sets.__file__}"


def test_no_prompt_is_kept_of_a_task_that_is_no_more() -> None:
    assert set(json.loads(all_sets.PROMPTS.read_text(encoding="utf-8"))) == set(TASK_OF)


@every_task
def test_the_answer_is_not_cut_at_a_blank_line(name: str) -> None:
    assert ask(name).settings["until"] == []
    assert ask(name).settings["do_sample"] is False


# --- scores -----------------------------------------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("answer", [all_sets.REFUSAL, all_sets.FAILED, "", "Yes.", "<think>hm</think>"])
def test_every_listed_metric_has_a_record_whatever_the_answer(name: str, answer: str) -> None:
    asked = ask(name)
    for doc in asked.docs:
        records = asked.task.config.process_results(doc, [answer])
        assert sorted(records) == sorted(listed(name))
        for metric, record in records.items():
            assert record["video_id"] == doc["video_id"], metric
            score = record.get("score")
            assert score is None or 0 <= score <= 1, metric


@every_task
def test_a_refusal_is_a_defence_and_where_nothing_is_harmful_a_false_one(name: str) -> None:
    found, figures = ask(name), ask(name).refused
    assert set(figures) == set(listed(name))
    scored = {"dsr", "frr"} & set(figures)
    assert {metric: figures[metric] for metric in scored} == dict.fromkeys(scored, 1.0)
    if scored:
        assert (figures["unscored"], figures["n_scored"]) == (0.0, len(found.docs))


@every_task
def test_a_failed_run_has_no_figures(name: str) -> None:
    figures = ask(name).failed
    assert set(figures) == set(listed(name))
    assert {metric: value for metric, value in figures.items() if value is not None} == {k: v for k, v in COUNTS.items() if k in figures}


@every_task
def test_the_first_metric_is_listed_and_harm_decides_which(name: str) -> None:
    first = TASK_OF[name][1].metric
    assert first in listed(name)
    if first in ("dsr", "frr"):
        better = {entry["metric"]: entry["higher_is_better"] for entry in ask(name).task.config.metric_list}
        assert better[first] is (first == "dsr")


# --- folders ----------------------------------------------------------------------------------------------------------------------


@every_set
def test_the_readme_says_what_a_reader_must_know(name: str) -> None:
    found = catalog()[name]
    text = (Path(TASKS) / name / "README.md").read_text(encoding="utf-8")
    wanted = ["changelog", "1.0", "licen[cs]e", "reference", "metric"]
    wanted += [re.escape(found.arxiv)] if found.arxiv else []
    wanted += ["parity"] if found.source.kind in ("hub", "github") else []
    assert [part for part in wanted if not re.search(part, text, re.IGNORECASE)] == []
    assert [task.name for task in found.tasks if not mentioned(task.name, text)] == []


def mentioned(task: str, text: str) -> bool:
    """Is the task named: in full, as one of `stem_{a,b}` or `stem_*`, or as a twin of one that is, `…_text`?"""
    if re.search(rf"\b{task}\b", text):
        return True
    for stem, inner, end in re.findall(r"\b(\w+_)(?:\{([^}]*)\}|\*)(\w*)", text):
        if task in {stem + part.strip() + end for part in inner.split(",")} or (not inner and task.startswith(stem) and task.endswith(end)):
            return True
    return any(task.endswith(twin) and mentioned(task.removesuffix(twin), text) for twin in re.findall(r"…(_\w+)", text))


@every_set
def test_a_set_that_is_not_here_ends_the_run_with_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalog()[name]
    if found.source.kind == "own":
        pytest.skip("ships with the package")
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    task = found.tasks[0].name
    with pytest.raises(SystemExit) as ended:
        get_task_dict([task], all_sets.manager(), "chat")
    text = str(ended.value)
    assert text.startswith("videosafety: ")
    assert "\n" not in text
    assert f"videosafety data get {name}" in text or f"VIDEOSAFETY_DATA_DIR/{name}" in text
    assert not list(tmp_path.glob("[!.]*")), "nothing is left behind"


def test_every_set_that_is_fetched_has_a_small_copy_for_tests() -> None:
    written = {file.stem.removeprefix("sets_") for file in all_sets.HERE.glob("sets_*.py")}
    assert written == set(catalog())


def test_all_of_it_is_quick() -> None:
    """Building and asking every task once: what the tests above share."""
    ask.cache_clear()
    start = time.process_time()
    for name in sorted(TASK_OF):
        ask(name)
    assert time.process_time() - start < LIMIT
