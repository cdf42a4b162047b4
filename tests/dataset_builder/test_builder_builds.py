"""Whole builds: the set they make, killed and resumed builds, servers that fail, and hostile sources."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from model_server import model_server
from toy_clips import comparable, project, rows

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub
from publishing import published
from videosafety.dataset_builder import build as building
from videosafety.dataset_builder.config import load
from videosafety.lmms_eval_tasks.data import read_rows
from videosafety.lmms_eval_tasks.hub_set import hub_rows
from videosafety.lmms_eval_tasks.judge.policy import category_groups
from videosafety.lmms_eval_tasks.vsb import dataset as vsb

LANGUAGES = {"server": "writer", "back": "judge", "targets": ["zh", "de"]}


def built(file: Path, **settings: Any) -> building.Built:
    return building.build(load(file), quiet=True, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a set with four cells in three languages."""
    with model_server() as model:
        file = project(tmp_path_factory.mktemp("built"), model.url, clips=6, translate=LANGUAGES)
        assert not built(file).to_try_again
        assert model.images == 6 * 2, "the judge that sees saw two frames of each clip"
    return file.parent / "out"


# --- the contract of a set: VSB-Open keeps it, and so does what is built --------------------------------------------------------------


@pytest.fixture(params=["VSB-Open", "built"])
def any_set(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    if request.param == "VSB-Open":
        return [row for cell in vsb.CELLS for row in vsb.rows(cell)]
    return rows(request.getfixturevalue("finished"))


def test_ids_are_unique_and_labels_are_those_of_the_cell(any_set: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in any_set}) == len(any_set)
    assert {(row["cell"], row["visual_label"], row["textual_label"]) for row in any_set} == {
        (c, v, t) for c, (_, v, t) in vsb.CELLS.items()
    }
    assert all(category_groups()[row["category"]] == row["group"] for row in any_set)
    assert all("/" not in row["id"] for row in any_set)


def test_two_cells_share_each_clip_and_only_harmful_clips_have_spans(any_set: list[dict[str, Any]]) -> None:
    shown = {cell: {row["video_id"] for row in any_set if row["cell"] == cell} for cell in vsb.CELLS}
    assert shown["hh"] == shown["hs"]
    assert shown["sh"] == shown["safeq"]
    assert not shown["hh"] & shown["sh"]
    assert all(bool(row["harm_spans"]) == bool(row["visual_label"]) for row in any_set)


def test_every_language_is_parallel_to_english(any_set: list[dict[str, Any]]) -> None:
    languages: dict[str, set[str]] = {}
    for row in any_set:
        languages.setdefault(row["id"].rpartition("-")[0], set()).add(row["language"])
    assert all("en" in found for found in languages.values())
    assert {row["language"] for row in any_set} <= set(vsb.LANGUAGES)


def test_queries_are_clean_text_and_no_clip_has_one_twice(any_set: list[dict[str, Any]]) -> None:
    for row in any_set:
        assert row["query"] == unicodedata.normalize("NFC", row["query"]).strip()
        assert 10 <= len(row["query"]) <= 400
        assert not re.search(r"\s\s|[\n\t{}<>\ufffd]", row["query"])
    assert max(Counter((row["video_id"], row["query"].casefold()) for row in any_set).values()) == 1


def test_english_comes_first_and_any_limit_sees_all_categories(any_set: list[dict[str, Any]]) -> None:
    for cell in vsb.CELLS:
        found = [row for row in any_set if row["cell"] == cell]
        order = [vsb.LANGUAGES.index(row["language"]) for row in found]
        assert order == sorted(order)
        english = [row["category"] for row in found if row["language"] == "en"]
        assert len(set(english[: len(set(english))])) == len(set(english))


# --- what else a built set has --------------------------------------------------------------------------------------------------------


def test_the_set_is_read_as_the_tasks_read_it(finished: Path) -> None:
    found = read_rows(finished / "vsb")
    assert Counter(row["cell"] for row in found) == {cell: 9 for cell in vsb.CELLS}
    assert all(Path(row["video"]).is_file() for row in found)
    assert {path.name for path in (finished / "vsb" / "videos").iterdir()} == {f"{row['video_id']}.mp4" for row in rows(finished)}


def test_parquet_holds_the_same_rows_with_provenance_as_columns(finished: Path) -> None:
    table = pyarrow.parquet.read_table(finished / "parquet" / "test.parquet").to_pylist()
    lines = rows(finished)
    assert [row["id"] for row in table] == [row["id"] for row in lines]
    for ours, theirs in zip(table, lines, strict=True):
        assert ours["provenance"] == json.loads(theirs["provenance"])
        made = ours["provenance"]
        assert [(vote["judge"], vote["family"]) for vote in made["votes"]] == [("judge-1+2frames", "south"), ("judge-2+0frames", "west")]
        assert made["agreement"] == 1.0
        assert made["query"]["model"] == "writer-1@abc"
        assert len(made["sha256"]) == 64
        assert (made["translation"] is None) == (ours["language"] == "en")


def test_nothing_tells_of_this_machine(finished: Path) -> None:
    for file in (
        finished / "stats.json",
        finished / "stats.html",
        finished / "report.jsonl",
        finished / "vsb" / "rows.jsonl",
        finished / "vsb" / "README.md",
        *finished.glob("review/*"),
    ):
        assert str(finished.parent) not in file.read_text(encoding="utf-8"), file.name


def test_the_card_says_who_made_it_and_what_was_not_measured(finished: Path) -> None:
    card = (finished / "vsb" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["language"] == ["en", "zh", "de"]
    assert head["viewer"] is False
    for words in ("labels: south, west", "queries: north", "not measured", "| test | 9 | 9 | 9 | 9 | 6 |"):
        assert words in card
    assert "share a model family" not in card


@pytest.mark.slow  # `make test-slow`
def test_the_set_evaluates_with_lmms_eval(finished: Path, lmms_eval: Any, tiny: Path) -> None:
    outcome = lmms_eval(
        "--model", "videosafety_r1", "--model_args", f"pretrained={tiny}", "--gen_kwargs", "max_new_tokens=4", "--tasks", "vsb_hh",
        "--limit", "2", VIDEOSAFETY_DATA_DIR=str(finished), VIDEOSAFETY_JUDGE="refusal",
    )  # fmt: skip
    assert outcome.results()["results"]["vsb_hh"]["n_scored,none"] == 2
    assert [sample["dsr"]["id"] for sample in outcome.samples("vsb_hh")] == [row["id"] for row in rows(finished) if row["cell"] == "hh"][:2]


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_the_set_is_published_and_read_back_from_the_hub(finished: Path, here: Hub) -> None:
    said = published("dataset", finished / "vsb", "--repo", "safety-lab/toy", "--license", "cc-by-4.0")
    (commit,) = set(re.findall(r"safety-lab/toy@([0-9a-f]{40})", said))
    kept = ("id", "query", "language", "category", "visual_label", "textual_label", "harm_spans")
    for cell in vsb.CELLS:
        there, _ = hub_rows(f"safety-lab/toy@{commit}", cell, video=True)
        ours = [row for row in rows(finished) if row["cell"] == cell]
        assert [[row[key] for key in kept] for row in there] == [[row[key] for key in kept] for row in ours]
        clips = [(finished / "vsb" / row["video"]).read_bytes() for row in ours]
        assert [Path(row["video"]).read_bytes() for row in there] == clips
    card = here.store.read(here.store.repos["datasets/safety-lab/toy"], "README.md").decode()
    assert "pretty_name: toy" in card
    assert "harm" in card
    assert "judge-1" in card or "south" in card, "who labelled it"


# --- killed and resumed ---------------------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from videosafety.dataset_builder import build, engine, training_rows
from videosafety.dataset_builder.config import load
from videosafety.lmms_eval_tasks.judge import client
file, places = Path(sys.argv[1]), sys.argv[2:]
build.ASKING = 1  # a question that is on its way when the process dies has to be asked again: here there is none
make = engine.make_stage

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def run_and_die(where):
    seen = []
    def dying(name, config, ask):
        stage = make(name, config, ask)
        def counted(row):
            found = list(stage(row))
            seen.append(row)
            return die() if len(seen) == 2 else found
        return counted if name == where else stage
    engine.make_stage = dying
    if where in ("write_rows", "write_queue", "write_pages"):
        setattr(build, where, die)
    build.build(load(file), workers=1, quiet=True)
    os._exit(0)

for where in places:  # forked: the imports take longer than the builds
    child = os.fork()
    if not child:
        run_and_die(where)
    print(where, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
_WHERE = (
    "inspect",
    "shots",
    "filter",
    "label",
    "describe",
    "spans",
    "queries",
    "translate",
    "write_rows",
    "training",
    "write_queue",
    "write_pages",
)


def test_killed_at_every_stage_it_makes_the_same_rows_and_asks_nothing_twice(tmp_path: Path) -> None:
    more = {
        "translate": LANGUAGES | {"targets": ["de"]}, "describe": {"server": "judge", "frames": 1}, "splits": {"test": 0.5, "train": 0.5},
        "training": {"reason": "writer", "reject": "other"},
    }  # fmt: skip
    with model_server() as model:
        file = project(tmp_path / "killed", model.url, clips=8, **more)
        done = subprocess.run([sys.executable, "-c", _KILLED, str(file), *_WHERE], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == [f"{where} -9" for where in _WHERE], done.stderr[-2000:]
        built(file)
        assert max(model.answered.values()) == 1
        asked = model.kinds.total()
    with model_server() as model:
        whole = project(tmp_path / "whole", model.url, clips=8, **more)
        built(whole)
        assert model.kinds.total() == asked
    for split in ("vsb", "train"):
        assert comparable(rows(tmp_path / "killed" / "out", split)) == comparable(rows(tmp_path / "whole" / "out", split))
    for name in ("sft.jsonl", "grpo.jsonl", "dpo.jsonl"):
        killed, once = (tmp_path / which / "out" / "train" / name for which in ("killed", "whole"))
        assert killed.read_bytes() == once.read_bytes()
        assert killed.read_bytes(), "an empty file would prove nothing"
    assert not list((tmp_path / "killed" / "out").rglob("*.part"))


def test_a_second_build_asks_nothing_and_new_videos_add_to_what_is_done(tmp_path: Path) -> None:
    with model_server() as model:
        file = project(tmp_path, model.url, clips=2)
        built(file)
        before = model.kinds.total(), rows(tmp_path / "out")
        built(file)
        assert (model.kinds.total(), rows(tmp_path / "out")) == before
        project(tmp_path, model.url, clips=3)
        built(file)
        assert model.kinds.total() == before[0] + 6, "two labels, two queries, two checks"
        assert {row["id"] for row in before[1]} < {row["id"] for row in rows(tmp_path / "out")}


def test_two_builds_of_one_folder_do_not_run_at_once(tmp_path: Path) -> None:
    with model_server() as model:
        file = project(tmp_path, model.url, clips=1)
        lock = tmp_path / "out" / ".build" / "lock"
        lock.parent.mkdir(parents=True)
        hold = "import sys; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout
            assert other.stdout.readline() == "held\n"
            with pytest.raises(building.BuildError, match="another build is at work"):
                built(file)
            other.communicate()
        assert built(file).rows["test"], "and once that one has ended, it is made"
