"""dataset.yml is checked key by key: every wrong one names file and key; and every set of ours says what a reader needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from videosafety.lmms_eval_tasks import catalog
from videosafety.lmms_eval_tasks.plugin import TASKS
from videosafety.main import app

GOOD: dict[str, Any] = {
    "name": "toy", "title": "Toy", "paper": "P", "arxiv": "2401.00001", "about": "A.",
    "source": {"kind": "hub", "id": "owner/name", "revision": "0861b17", "files": ["*"], "folder": ""},
    "unpack": {"test.zip": "."}, "licence": "MIT", "gate": None, "size_mb": 1.5, "layout": ["test.json", "test/**/*.jpg"],
    "sha256": {"test.json": "a" * 64}, "note": "",
    "tasks": {"toy_a": {"rows": 3, "metric": "dsr", "modality": "text", "cell": "c", "judge": "any", "status": "ready"}},
    "reference": [{"task": "toy_a", "metric": "ASR %", "model": "M", "value": 1, "source": "S"}],
}  # fmt: skip


def write(folder: Path, facts: Any) -> Path:
    file = folder / "toy" / "dataset.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(facts if isinstance(facts, str) else yaml.safe_dump(facts))
    return file


def changed(*path: str, to: Any) -> Callable[[], Any]:
    def build() -> Any:
        facts = json.loads(json.dumps(GOOD))
        inner = facts
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to
        return facts

    return build


def without(*path: str) -> Callable[[], Any]:
    def build() -> Any:
        facts = json.loads(json.dumps(GOOD))
        inner = facts
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return facts

    return build


WRONG = {
    "not YAML": (lambda: "name: [", "not YAML"),
    "a list": (lambda: "[]", "must be a mapping"),
    "empty": (lambda: "", "must be a mapping"),
    "unknown key": (changed("url", to="x"), "url: unknown key"),
    "unknown key of the source": (changed("source", "branch", to="main"), "source: branch: unknown key"),
    "unknown key of a task": (changed("tasks", "toy_a", "n", to=1), "tasks: toy_a: n: unknown key"),
    "unknown key of a reference": (changed("reference", to=[GOOD["reference"][0] | {"year": 1}]), "entry 1: year: unknown key"),
    **{f"without {key}": (without(key), f"{key}: is missing") for key in GOOD},
    **{f"source without {key}": (without("source", key), f"source: {key}: is missing") for key in GOOD["source"]},
    **{f"task without {key}": (without("tasks", "toy_a", key), f"toy_a: {key}: is missing") for key in GOOD["tasks"]["toy_a"]},
    "another name": (changed("name", to="other"), "name: 'other' is not the folder's name"),
    "arxiv as a number": (changed("arxiv", to=2401.1), "arxiv: has the wrong kind"),
    "size as a truth value": (changed("size_mb", to=True), "size_mb: has the wrong kind"),
    "kind": (changed("source", "kind", to="ftp"), "source: kind: 'ftp'"),
    "id with an address": (changed("source", "id", to="https://x/y"), "source: id:"),
    "id null": (changed("source", "id", to=None), "source: id:"),
    "branch for a commit": (changed("source", "revision", to="main"), "source: revision: 'main'"),
    "commit as a number": (changed("source", "revision", to=1234567), "source: revision: has the wrong kind"),
    "no files": (changed("source", "files", to=[]), "source: files: is empty"),
    "files are numbers": (changed("source", "files", to=[1]), "source: files: must be a list of texts"),
    "folder outside": (changed("source", "folder", to="../x"), "source: folder: '../x'"),
    "layout outside": (changed("layout", to=["/etc/passwd"]), "'/etc/passwd' must be a path inside"),
    "empty layout": (changed("layout", to=[]), "layout: is empty"),
    "unpack outside": (changed("unpack", to={"a.zip": "../x"}), "'../x' must be a path inside"),
    "unpack to a list": (changed("unpack", to={"a.zip": []}), "unpack: must map texts to texts"),
    "short hash": (changed("sha256", to={"a": "abc"}), "sha256: a: 'abc'"),
    "no tasks": (changed("tasks", to={}), "tasks: is empty"),
    "status": (changed("tasks", "toy_a", "status", to="soon"), "toy_a: status: 'soon'"),
    "unavailable without a reason": (changed("tasks", "toy_a", "status", to="unavailable"), "toy_a: reason: belongs"),
    "ready with a reason": (changed("tasks", "toy_a", "reason", to="because"), "toy_a: reason: belongs"),
    "no rows": (changed("tasks", "toy_a", "rows", to=0), "toy_a: rows: must be 1 or more"),
    "reference to no task": (changed("reference", to=[GOOD["reference"][0] | {"task": "toy_b"}]), "entry 1: task: 'toy_b'"),
    "reference without figure": (changed("reference", to=[GOOD["reference"][0] | {"value": "high"}]), "entry 1: value: has"),
}  # fmt: skip


def test_a_good_one_is_read_into_frozen_facts(tmp_path: Path) -> None:
    found = catalog.read(write(tmp_path, GOOD))
    assert (found.name, found.status, found.source.page) == ("toy", "ready", "https://huggingface.co/datasets/owner/name")
    assert found.tasks == (catalog.Task("toy_a", 3, "dsr", "text", "c", "any", "ready", None),)
    assert found.reference == (catalog.Reference("toy_a", "ASR %", "M", 1, "S", ""),)
    with pytest.raises(AttributeError):
        found.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("build", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_one_names_file_and_key(tmp_path: Path, build: Callable[[], Any], says: str) -> None:
    file = write(tmp_path, build())
    with pytest.raises(ValueError) as caught:
        catalog.read(file)
    assert str(caught.value).startswith(str(file))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_sets_cannot_list_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "toz").mkdir()
    (tmp_path / "toz" / "dataset.yml").write_text(yaml.safe_dump(GOOD | {"name": "toz"}))
    monkeypatch.setattr(catalog, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"toz/dataset\.yml: tasks: toy_a is listed by toy too"):
        catalog.catalog.__wrapped__()


# --- ours -------------------------------------------------------------------------------------------------------------------------

sets = pytest.mark.parametrize("name", list(catalog.catalog()))


@sets
def test_a_set_says_where_it_is_from_and_what_it_measures(name: str) -> None:
    found = catalog.catalog()[name]
    assert len(found.about) > 40
    assert found.paper
    assert found.licence
    if found.source.kind in ("hub", "github"):
        assert found.source.revision or "recorded" in found.note, "no pinned revision: the note says that the commit fetched is recorded"
    for packed in found.unpack:
        assert packed.endswith((".zip", ".tar", ".tar.gz"))


def test_every_task_has_a_yaml_of_its_folder_and_the_other_way_round() -> None:
    listed = {found.name: {task.name for task in found.tasks} for found in catalog.catalog().values()}
    there: dict[str, set[str]] = {}
    for file in Path(TASKS).glob("*/*.yaml"):
        if "\ntask: [" not in (text := file.read_text(encoding="utf-8")) and "\ngroup:" not in text and file.parent.name != "policy":
            there.setdefault(file.parent.name, set()).add(file.stem)
    assert there == listed


def test_list_prints_one_object_with_every_task() -> None:
    result = CliRunner().invoke(app, ["data", "list", "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert set(printed) == {"datasets", "tasks"}
    keys = {"name", "set", "source", "revision", "licence", "gate", "rows", "metric", "judge", "modality", "status", "reason"}
    assert all(keys <= set(task) for task in printed["tasks"])
    assert {task["name"] for task in printed["tasks"]} >= {"vsb_hh", "vse_hh", "figstep_tiny"}
    missing = {entry["name"]: entry for entry in printed["datasets"] if entry["status"] == "not implemented"}
    assert set(missing) >= {"safevidbench_base", "safevidbench_challenge", "vpo", "star_dss"}
    assert all(entry["reason"] for entry in printed["datasets"] if entry["status"] != "ready")
    tasks = {task["name"] for task in printed["tasks"]}
    assert all(entry["instead"] is None or entry["instead"] in tasks for entry in missing.values())


def test_the_table_names_every_task_and_what_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["data", "list"])
    assert result.exit_code == 0
    for found in catalog.catalog().values():
        assert all(f"  {task.name} " in result.stdout for task in found.tasks)
    assert all(entry.title in result.stdout for entry in catalog.missing())


def test_status_prints_where_and_what_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "vse").mkdir()
    (tmp_path / "figstep" / "question").mkdir(parents=True)
    (tmp_path / "vse" / "rows.jsonl").write_text("")
    result = CliRunner().invoke(app, ["data", "status", "--json"])
    states = {entry["name"]: entry for entry in json.loads(result.stdout)["datasets"]}
    assert (states["vsb"]["state"], states["vse"]["state"], states["figstep"]["state"]) == ("ships", "local", "partial")
    assert "question/safebench.csv" in states["figstep"]["missing"]
    assert "videosafety data get figstep" in states["figstep"]["next"]
    table = CliRunner().invoke(app, ["data", "status"]).stdout
    assert str(tmp_path / "vse") in table
    assert CliRunner().invoke(app, ["data", "status", "vse"]).exit_code == 0
    assert CliRunner().invoke(app, ["data", "status", "figstep"]).exit_code == 1
