"""SafeVid-350K's held-out part: the same rows everywhere, whole videos on one side, and never under the benchmark's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from sets_safevid import chosen, local_copy, names, row

from conftest import write_set
from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.catalog import catalog
from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.safevid import docs

NONE = Dataset.from_list([{}])


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    local_copy(tmp_path)
    return tmp_path / "safevid"


def test_the_split_is_as_its_readme_defines_it_and_of_the_size_it_says() -> None:
    units = [f"video-{n}" for n in range(20_000)]
    taken = [unit for unit in units if docs.held_out(unit)]
    assert taken == [unit for unit in units if chosen(unit)]
    assert 20_000 / 256 * 0.6 < len(taken) < 20_000 / 256 * 1.4


def test_the_split_never_changes() -> None:
    assert [n for n in range(1500) if docs.held_out(str(n))] == [50, 99, 238, 540, 744, 996, 1280, 1286, 1291, 1486]


def test_rows_of_a_held_out_video_are_all_there_and_no_others(copy: Path) -> None:
    first, second = names(True, 2)
    rows = list(docs.heldout(NONE))
    assert [(r["id"], r["video_id"]) for r in rows] == [(f"{first}-0", first), (f"{first}-1", first), (f"{second}-0", second)]
    assert [r["video"] for r in rows] == [str(copy / r["video_id"]) for r in rows]
    assert run.SETTINGS["data"]["safevid"]["split"] == {"seed": docs.SEED, "one_in": 256}


def test_the_twin_shows_nothing(copy: Path) -> None:
    seen, read = list(docs.heldout(NONE)), list(docs.heldout_text(NONE))
    assert [r["query"] for r in read] == [r["query"] for r in seen]
    assert not any("video" in r for r in read)


def test_a_row_without_a_video_falls_by_its_id_and_a_named_video_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    unit, other = names(True, 1)[0], names(False, 1)[0]
    bare = {"id": unit, "cell": "harmful", "query": "How?"}
    write_set(tmp_path / "safevid", [bare, bare | {"id": other}, row(other) | {"video_id": unit}, row(unit) | {"video_id": other}])
    assert [r["id"] for r in docs.heldout_text(NONE)] == [unit, f"{other}-0"]
    assert [r["id"] for r in docs.heldout(NONE)] == [f"{other}-0"]


HOSTILE = {
    "no harmful rows": ([row(names(True, 1)[0]) | {"cell": "safe"}], r"none of its 0 rows with cell 'harmful' and a video"),
    "none held out": ([row(names(False, 1)[0])], r"none of its 1 rows .* falls into the held-out part \(one in 256\)"),
    "a path out of the folder": ([row(names(True, 1)[0]) | {"video": "../x.mp4"}], r"line 1: video '\.\./x\.mp4' lies outside"),
    "no query": ([{"id": "1", "cell": "harmful"}], r"line 1: query is missing"),
    "an id twice": ([row("a"), row("a")], r"line 2: the id a-0 is there twice"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_copy_that_is_not_as_described_is_one_clear_error(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    rows, message = HOSTILE[case]
    write_set(tmp_path / "safevid", rows)
    with pytest.raises(MissingData, match=message):
        docs.heldout(NONE)


def test_without_a_copy_one_line_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    with pytest.raises(MissingData, match=r"make rows\.jsonl from the Hub dataset yxwang/SafeVid-350K") as caught:
        docs.heldout(NONE)
    assert "\n" not in str(caught.value).strip()


def test_nothing_is_named_after_the_benchmark() -> None:
    found = catalog()["safevid"]
    assert {task.name for task in found.tasks} == {"safevid_350k_heldout", "safevid_350k_heldout_text"}
    assert {task.status for task in found.tasks} == {"unavailable"}
    assert all("layout" in (task.reason or "") for task in found.tasks)
    assert "not SafeVidBench" in found.about
