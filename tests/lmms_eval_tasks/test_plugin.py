"""The plugin: our tasks and model are there with no flag, through every front end; an lmms-eval it does not know is only warned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmms_eval as upstream
import pytest
import yaml

from conftest import Outcome, write_set, write_video
from videosafety.lmms_eval_tasks import plugin

Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def plain_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """`offline` leaves answers of a few letters unscored, and that is all a tiny model may say; `refusal` takes any word for an answer."""
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """VIDEOSAFETY_DATA_DIR with three rows a cell: front ends are what is tested here, not the data."""
    folder = tmp_path / "data" / "vsb"
    folder.mkdir(parents=True)
    clips = [write_video(folder / f"{n}.mp4", frames=8 * (n + 1)) for n in range(2)]
    rows = [
        {"id": f"{cell}-{n}", "cell": cell, "query": f"Question {n} about {cell}?", "video": clips[n % 2].name, "category": "weapons"}
        for cell in ("hh", "sh", "hs", "safeq")
        for n in range(3)
    ]
    return write_set(folder, rows).parent


ARGS = ("--model", "videosafety_r1", "--batch_size", "2", "--gen_kwargs", "max_new_tokens=4")


@pytest.mark.parametrize(
    "front",
    [
        pytest.param(("lmms-eval",), id="lmms-eval"),
        pytest.param(("lmms-eval", "eval"), id="eval", marks=pytest.mark.slow),
        pytest.param((sys.executable, "-m", "lmms_eval"), id="-m", marks=pytest.mark.slow),
    ],
)
def test_front_ends(lmms_eval: Run, small_set: Path, tiny: Path, front: tuple[str, ...]) -> None:
    outcome = lmms_eval(*ARGS, "--model_args", f"pretrained={tiny}", "--tasks", "vsb_hh", front=front, VIDEOSAFETY_DATA_DIR=str(small_set))
    row = outcome.results()["results"]["vsb_hh"]
    assert (row["n_scored,none"], row["unscored,none"]) == (3, 0.0)


@pytest.mark.slow  # `make test-slow`
def test_config_file_group_and_a_users_own_include_path(lmms_eval: Run, small_set: Path, tiny: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "rows.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
    task = {"task": "my_own_task", "dataset_path": "json", "dataset_kwargs": {"data_files": "rows.jsonl"}, "test_split": "train"}
    task |= {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "one"}
    task |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
    (own / "task.yaml").write_text(yaml.safe_dump(task))
    config = tmp_path / "run.yaml"
    settings: dict[str, Any] = {"model": "videosafety_r1", "model_args": f"pretrained={tiny}", "tasks": "vsb,my_own_task", "batch_size": 2}
    config.write_text(yaml.safe_dump(settings | {"include_path": str(own), "gen_kwargs": "max_new_tokens=4"}))
    results = lmms_eval("--config", str(config), VIDEOSAFETY_DATA_DIR=str(small_set)).results()
    assert set(results["results"]) >= {"vsb", "vsb_hh", "vsb_sh", "vsb_hs", "vsb_safeq", "my_own_task"}
    assert results["results"]["vsb"]["dsr,none"] == 0.0
    assert results["results"]["vsb"]["frr,none"] == 0.0


@pytest.mark.slow  # `make test-slow`
def test_two_ranks_score_every_row_once(lmms_eval: Run, small_set: Path, tiny: Path) -> None:
    front = ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "lmms_eval")
    common = (*ARGS, "--model_args", f"pretrained={tiny},resume=False", "--tasks", "vsb_hh,vsb_safeq")
    two = lmms_eval(*common, front=front, out="two", VIDEOSAFETY_DATA_DIR=str(small_set), OMP_NUM_THREADS="1")
    one = lmms_eval(*common, out="one", VIDEOSAFETY_DATA_DIR=str(small_set))
    for task in ("vsb_hh", "vsb_safeq"):
        assert two.results()["results"][task] == one.results()["results"][task]
        answers = [{sample["doc_id"]: sample["filtered_resps"] for sample in outcome.samples(task)} for outcome in (one, two)]
        assert answers[0] == answers[1]
        assert len(two.samples(task)) == 3
    recorded = two.results()["configs"]["vsb_hh"]["metadata"]["run"]["model"]
    assert recorded["world_size"] == 2


@pytest.mark.slow  # `make test-slow`
def test_simple_evaluate_from_python(small_set: Path, tiny: Path) -> None:
    code = f"""
import json
from lmms_eval import evaluator
settings = dict(model_args="pretrained={tiny},device=cpu", gen_kwargs="max_new_tokens=4")
found = evaluator.simple_evaluate(model="videosafety_r1", tasks=["vsb_safeq"], **settings)
print("RESULT", json.dumps(found["results"]["vsb_safeq"], default=str))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"VIDEOSAFETY_DATA_DIR": str(small_set)}, capture_output=True, text=True
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line, done.stderr[-2000:]
    assert json.loads(line[7:])["n_scored,none"] == 3


def test_missing_data_is_one_clear_error(lmms_eval: Run, tiny: Path) -> None:
    outcome = lmms_eval(*ARGS, "--model_args", f"pretrained={tiny}", "--tasks", "vse_hh")
    assert outcome.status == 1
    assert "VIDEOSAFETY_VSE=<folder or Hub dataset id@revision>" in outcome.log
    assert "RetryError" not in outcome.log


# --- an lmms-eval that is not as we know it ---------------------------------------------------------------------------------------


def manager_module(init: Callable[..., None]) -> types.SimpleNamespace:
    return types.SimpleNamespace(TaskManager=type("TaskManager", (), {"__init__": init}))


def test_our_folder_comes_after_what_the_user_gave() -> None:
    seen: list[Any] = []

    def init(self: Any, verbosity: str = "INFO", include_path: Any = None) -> None:
        seen.append(include_path)

    module = manager_module(init)
    plugin.add_include_path(module)
    plugin.add_include_path(module)  # twice is once
    for given in (None, "/a", Path("/a"), ["/a", "/b"], ["/a", plugin.TASKS]):
        module.TaskManager(include_path=given)
    module.TaskManager("DEBUG", "/positional")
    ours = plugin.TASKS
    assert seen == [[ours], ["/a", ours], ["/a", ours], ["/a", "/b", ours], ["/a", ours], ["/positional", ours]]


def test_a_changed_task_manager_is_a_warning_that_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", manager_module(lambda self, folders=None: None))
    with pytest.warns(UserWarning, match="--include_path"):
        plugin.register()


def test_an_lmms_eval_without_manifests_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", None)
    with pytest.warns(UserWarning, match="could not hook"):
        assert plugin.register() == []


def test_register_is_light_and_silent() -> None:
    code = """
import sys, warnings
warnings.simplefilter("error")
from videosafety.lmms_eval_tasks.plugin import _add_tasks
_add_tasks()
assert not {"torch", "transformers", "datasets", "lmms_eval.tasks"} & set(sys.modules), "the plugin must not import anything heavy"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_import_hook_removes_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hook = plugin._AfterImport()
        sys.meta_path.insert(0, hook)
        assert hook.find_spec("something.else") is None
        assert hook.find_spec("lmms_eval.tasks", upstream.__path__) is not None
    assert hook not in sys.meta_path
