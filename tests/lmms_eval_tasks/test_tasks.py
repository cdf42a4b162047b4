"""Every YAML of ours: one that does not load would end every lmms-eval run of a user; one that clashes would be dropped in silence."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import lmms_eval.tasks
import pytest
import sets_vsb
import sets_vse
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from lmms_eval.tasks import TaskManager, get_task_dict
from lmms_eval.utils import load_yaml_config

from videosafety.lmms_eval_tasks import alarm, metrics, run
from videosafety.lmms_eval_tasks.plugin import TASKS

FOLDER = Path(TASKS)
TEMPLATES = sorted(FOLDER.rglob("_videosafety*_base"))
YAMLS = sorted(FOLDER.rglob("*.yaml"))  # what lmms-eval looks at, in any folder below


def load(file: Path, mode: str) -> dict[str, Any]:
    return load_yaml_config(str(file), mode=mode)


CONFIGS = {file: load(file, "full") for file in YAMLS}
TASK_FILES = [file for file, config in CONFIGS.items() if isinstance(config.get("task"), str)]
GROUP_FILES = [file for file, config in CONFIGS.items() if isinstance(config.get("task"), list)]
GROUPS = {CONFIGS[file]["group"]: CONFIGS[file] for file in GROUP_FILES}
TASKS_BY_NAME = {CONFIGS[file]["task"]: CONFIGS[file] for file in TASK_FILES}
UTILITY = "videosafety_utility"  # the one group whose tasks are lmms-eval's own
TOY = {"toy_hh", "toy_sh", "toy_hs", "toy_safeq", "toy_utility"}  # they measure recipes, not models
OTHER_FILES = {"policy/v1.yaml"}  # YAMLs that are no tasks, by their last two parts


def name(file: Path) -> str:
    return file.stem


tasks = pytest.mark.parametrize("file", TASK_FILES, ids=name)
groups = pytest.mark.parametrize("file", GROUP_FILES, ids=name)


def test_the_tasks_and_groups_that_others_rely_on_are_there() -> None:
    video = {"vsb_hh", "vsb_sh", "vsb_hs", "vsb_safeq"}
    text = {"vsb_hh_text", "vsb_sh_text", "vsb_safeq_text"}
    named = {"figstep", "figstep_tiny", "vlguard_safe_unsafes", "vlguard_unsafes", "vlguard_safe_safes", "vsb_typo"}
    assert set(TASKS_BY_NAME) >= video | text | named | {"vse_hh", "vse_sh", "vse_safeq"}
    assert (set(GROUPS["vsb"]["task"]), set(GROUPS["vsb_text"]["task"])) == (video, text)
    assert set(GROUPS) >= {"videosafety_image", "vsb_temporal", UTILITY}


def test_no_name_is_given_twice() -> None:
    """Tasks, groups and tags share one index: the later of two would be dropped in silence."""
    assert len(TASKS_BY_NAME) == len(TASK_FILES)
    assert len(GROUPS) == len(GROUP_FILES)
    assert not set(TASKS_BY_NAME) & set(GROUPS)
    assert "videosafety" not in {*TASKS_BY_NAME, *GROUPS}


@pytest.mark.parametrize("file", YAMLS, ids=name)
@pytest.mark.parametrize("mode", ["simple", "full"])
def test_it_loads_from_any_folder(file: Path, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(file, mode)


@pytest.mark.parametrize("file", YAMLS, ids=name)
def test_it_is_a_task_or_a_group_or_known_to_be_neither(file: Path) -> None:
    kinds = (file in TASK_FILES, file in GROUP_FILES, "/".join(file.parts[-2:]) in OTHER_FILES)
    assert kinds.count(True) == 1, f"{file}: lmms-eval would take it for {kinds}"
    if not kinds[2]:
        assert file.stem == CONFIGS[file].get("group", CONFIGS[file]["task"])  # `videosafety doctor` knows tasks by their file's name


@tasks
def test_a_task_is_set_up_so_that_answers_reach_the_judge_whole(file: Path) -> None:
    config = CONFIGS[file]
    assert config["output_type"] == "generate_until"
    assert config["generation_kwargs"] == {"until": [], "do_sample": False, "temperature": 0, "max_new_tokens": 1024}
    assert config.get("repeats", 1) == 1
    assert config["reasoning_tags"] == "none"
    assert config["process_results_use_image"] is True
    assert config["cluster_key"] == "video_id"
    assert config["tag"] == ("toy" if config["task"] in TOY else "videosafety")
    assert json.loads(Path(config["dataset_kwargs"]["data_files"]).read_text(encoding="utf-8"))


@tasks
def test_results_say_what_they_were_made_with(file: Path) -> None:
    metadata = CONFIGS[file]["metadata"]
    assert isinstance(metadata["version"], float)
    assert metadata["run"] is run.SETTINGS  # not a copy: what the model notes later must be in it


def leaves(group: str) -> list[str]:
    """The tasks of a group, those of its groups too."""
    return [leaf for member in GROUPS[group]["task"] for leaf in (leaves(member) if member in GROUPS else [member])]


@groups
def test_a_group_has_a_version_and_its_tasks_exist_once(file: Path) -> None:
    config = CONFIGS[file]
    assert isinstance(config["metadata"]["version"], float)
    members = leaves(config["group"])
    assert len(members) == len(set(members)) > 1
    if config["group"] == UTILITY:
        assert not set(members) & set(TASKS_BY_NAME)
        assert "aggregate_metric_list" not in config, "figures of different kinds have no mean"
    else:
        assert set(members) <= set(TASKS_BY_NAME)


@groups
def test_a_group_pools_what_its_tasks_measure(file: Path) -> None:
    """A rate of rows is weighted by rows; what the benchmark itself averages over its parts is not. `unscored` is never left out."""
    config = CONFIGS[file]
    if config["group"] == UTILITY:
        return
    measured = [{entry["metric"] for entry in TASKS_BY_NAME[task]["metric_list"]} for task in leaves(config["group"])]
    pooled = {entry["metric"]: entry for entry in config["aggregate_metric_list"]}
    assert len(pooled) == len(config["aggregate_metric_list"])
    assert set(pooled) <= set().union(*measured)
    assert {"dsr", "frr", "unscored"} & set().union(*measured) <= set(pooled)
    for metric, entry in pooled.items():
        kind, _, modality = metric.rpartition("_")
        if kind in ("alarm_auroc", "alarm_interval"):  # no mean of its tasks': of all their rows
            made = f"{config['group']}_{modality}" + ("_interval" if kind == "alarm_interval" else "")
            assert entry["aggregation"] is getattr(alarm, made)
            continue
        assert entry["aggregation"] is metrics.pooled, metric
        assert entry["weight_by_size"] is True or metric not in ("frr", "unscored", *metrics.SUMMARIES), metric


@tasks
def test_what_is_listed_is_listed_once_and_points_the_right_way(file: Path) -> None:
    """That the records are what is listed, test_contract.py sees on real rows."""
    config = CONFIGS[file]
    listed = {entry["metric"]: entry for entry in config["metric_list"]}
    assert len(listed) == len(config["metric_list"])
    better = {"dsr": True, "frr": False, "unscored": False, "n_scored": True}
    for metric, entry in listed.items():
        if metric in (*metrics.METRICS, "unscored", *metrics.SUMMARIES):
            assert entry["aggregation"] is getattr(metrics, metric if metric in metrics.SUMMARIES else "share")
        assert callable(entry["aggregation"])
        assert entry["higher_is_better"] is better.get(metric, entry["higher_is_better"])
    if {"dsr", "frr"} & set(listed):
        assert {"unscored", *metrics.SUMMARIES} <= set(listed), "a rate never goes without its n, interval and bounds"


def test_no_metric_name_contains_another() -> None:
    """lmms-eval matches a group's metrics by substring: `dsr` would also pool `dsr_visual`."""
    names = {
        entry["metric"] for config in CONFIGS.values() for key in ("metric_list", "aggregate_metric_list") for entry in config.get(key, [])
    }
    assert names >= {"dsr", "frr", "unscored", metrics.PANEL, *metrics.SUMMARIES}
    assert [(a, b) for a, b in itertools.permutations(sorted(names), 2) if a in b] == []


@pytest.mark.parametrize("file", [*YAMLS, *TEMPLATES], ids=name)
def test_functions_are_absolute_dotted_paths(file: Path) -> None:
    """A relative one is executed anew for every mention, so that state such as run.SETTINGS is never shared."""
    text = file.read_text(encoding="utf-8")
    named = re.findall(r"!function\s+(\S+)", text)
    assert len(named) == len(re.findall(r"(?m)^[^#\n]*!function", text))
    assert [path for path in named if not path.startswith("videosafety.lmms_eval_tasks.")] == []


def test_templates_have_names_that_nothing_else_has() -> None:
    """`include` looks in the working directory first, and a file with an extension .yaml would be taken for a task."""
    included = {Path(path).name for file in TASK_FILES for path in re.findall(r"[\w./]*_base\b", file.read_text(encoding="utf-8"))}
    assert included == {file.name for file in TEMPLATES}
    assert len({file.name for file in TEMPLATES}) == len(TEMPLATES)
    assert all(file.name.startswith("_videosafety_") and not file.suffix for file in TEMPLATES)


@tasks
def test_a_file_of_the_users_named_base_is_not_taken_for_our_template(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("_base", "base", "_dsr_base", "_default_template_yaml"):
        (tmp_path / other).write_text("task: stolen\n")
    monkeypatch.chdir(tmp_path)
    assert load(file, "simple")["task"] == CONFIGS[file]["task"]


# --- beside lmms-eval's own tasks -------------------------------------------------------------------------------------------------


def test_no_name_is_lmms_evals_own() -> None:
    """Where names clash lmms-eval keeps its own and drops ours without a word."""
    manager = TaskManager(include_defaults=False)
    theirs = manager._get_task_and_group(str(Path(lmms_eval.tasks.__file__).parent))
    ours = manager._get_task_and_group(TASKS)
    assert len(theirs) > 500
    assert set(ours) & set(theirs) == set()
    assert ours["videosafety"]["type"] == "tag"
    assert sorted(ours["videosafety"]["task"]) == sorted(set(TASKS_BY_NAME) - TOY)
    assert sorted(ours["toy"]["task"]) == sorted(TOY)
    assert set(GROUPS[UTILITY]["task"]) <= set(theirs)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=TASKS, include_defaults=False)


def test_the_task_manager_sees_tasks_groups_and_tag_and_nothing_else(manager: TaskManager) -> None:
    assert manager.all_subtasks == sorted(TASKS_BY_NAME)
    assert manager.all_groups == sorted(GROUPS)
    assert manager.all_tags == ["toy", "videosafety"]


def test_the_toy_world_is_in_no_tag_and_no_group_that_measures_models() -> None:
    assert [name for name in GROUPS if name != "toy_world" and TOY & set(leaves(name))] == []


# --- built as lmms-eval builds them -----------------------------------------------------------------------------------------------

CELLS = ("hh", "sh", "hs", "safeq")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VIDEOSAFETY_DATA_DIR with a set of two rows a cell, for vsb and for vse."""
    root = tmp_path_factory.mktemp("data")
    sets_vsb.local_copy(root)
    sets_vse.local_copy(root)
    return root


def build(manager: TaskManager, task: str, kind: str) -> Any:
    return get_task_dict([task], manager, kind)[task]


@pytest.mark.parametrize("kind", ["chat", "simple"])
@pytest.mark.parametrize("task", [f"vsb_{cell}" for cell in CELLS] + ["vse_hh", "vse_sh", "vse_safeq"])
def test_a_video_task_shows_the_clip_and_then_asks(
    manager: TaskManager, sets: Path, monkeypatch: pytest.MonkeyPatch, task: str, kind: str
) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(sets))
    built = build(manager, task, kind)
    owner, _, cell = task.partition("_")
    assert [doc["id"] for doc in built.test_docs()] == [f"{cell}-1", f"{cell}-2"]
    assert built.config.generation_kwargs["until"] == []
    doc, clip, query = built.test_docs()[0], str(sets / owner / "1.mp4"), f"{owner} {cell} 1?"
    if kind == "chat":
        assert type(built) is ConfigurableMessagesTask
        content = [{"type": "video", "url": clip}, {"type": "text", "text": query}]
        assert built.doc_to_messages(doc) == [{"role": "user", "content": content}]
    else:
        assert type(built) is ConfigurableTask
        assert (built.doc_to_visual(doc), built.doc_to_text(doc)) == ([clip], query)


@pytest.mark.parametrize("kind", ["chat", "simple"])
@pytest.mark.parametrize("cell", ["hh", "sh", "safeq"])
def test_a_text_twin_asks_and_shows_nothing(
    manager: TaskManager, sets: Path, monkeypatch: pytest.MonkeyPatch, cell: str, kind: str
) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(sets))
    built = build(manager, f"vsb_{cell}_text", kind)
    doc, query = built.test_docs()[1], f"vsb {cell} 2?"
    if kind == "chat":
        assert built.doc_to_messages(doc) == [{"role": "user", "content": [{"type": "text", "text": query}]}]
    else:
        assert (built.doc_to_visual(doc), built.doc_to_text(doc)) == ([], query)


@pytest.mark.parametrize("kind", ["chat", "simple"])
def test_vsb_typo_shows_the_question_in_an_image(manager: TaskManager, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from videosafety.lmms_eval_tasks.vsb import typo

    two = typo.rows()[:2]
    monkeypatch.setattr(typo, "rows", lambda: two)
    built = build(manager, "vsb_typo", kind)
    first, second = built.test_docs()
    assert Path(first["image"]).read_bytes() != Path(second["image"]).read_bytes()
    assert first["request"] != first["query"] == typo.PROMPT
    assert first["video_id"] != second["video_id"]
    if kind == "chat":
        content = [{"type": "image", "url": first["image"]}, {"type": "text", "text": typo.PROMPT}]
        assert built.doc_to_messages(first) == [{"role": "user", "content": content}]
    else:
        assert (built.doc_to_visual(first), built.doc_to_text(first)) == ([first["image"]], typo.PROMPT)
