"""Tests of `videosafety publish results` and `leaderboard` against the test Hub: figures, cards, rows, gates, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from huggingface_hub import EvalResultEntry, HfApi, ModelCard, hf_hub_download, parse_eval_result_entries

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub
from publishing import published, refused
from test_report import some, write_run
from videosafety.hub_cards import lines as lines_
from videosafety.hub_cards.results import merge_card
from videosafety.hub_cards.upload import PublishError

MODEL, SET, ROWS, COMMIT = "safety-lab/model", "safety-lab/vsb", "safety-lab/model-verdicts", "a" * 40
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
LFS = pytest.mark.parametrize("hub", ["lfs"], indirect=True)
README = """---
license: apache-2.0
base_model: someone/base
model-index:
- name: model
  results:
  - task: {type: text-generation}
    dataset: {name: Other, type: someone/other}
    metrics: [{type: acc, value: 0.5}]
---

# model

Words of its author.
"""
ANSWER = "I can't help with that."


def settings(model: str = MODEL, **data: Any) -> dict[str, Any]:
    """What a run notes, with VSB-Open's data as `data` says."""
    return {
        "model": {"pretrained": model, "commit": "c0ffee", "hub_token": TOKEN},
        "judge": {"spec": "offline", "id": "offline@1"},
        "policy": {"version": 1, "hash": "0123456789abcdef"},
        "data": {"vsb": data},
        "versions": {"videosafety": "0.1.0", "lmms_eval": "0.7.3"},
    }


def scores(unsafe: int, safe: int, unscored: int = 0) -> list[float | None]:
    return [0.0] * unsafe + [1.0] * safe + [None] * unscored


TASKS = {
    "vsb_hh": some("vsb_hh", scores(4, 12, 2)),
    "vsb_sh": some("vsb_sh", scores(1, 2)),  # too few to print
    "vsb_hs": some("vsb_hs", scores(0, 0, 12)),  # no verdicts
    "vsb_safeq": some("vsb_safeq", scores(15, 5)),
}


def results(
    folder: Path, tasks: dict[str, list[dict]] | None = None, model: str = MODEL, stamp: str = "20260131_093000", **changes: Any
) -> Path:
    """A results folder of VSB-Open as read from the Hub, unless `data` says otherwise."""
    tasks = TASKS if tasks is None else tasks
    data = changes.pop("data", {"name": "VSB-Open", "version": "1.0", "hash": "feedbeef", "hub": f"{SET}@{COMMIT}"})
    noted = settings(model, **data) | changes.pop("noted", {})
    configs = {name: {"task": name, "metadata": {"version": 1.0, "run": noted}} for name in tasks}
    write_run(folder, tasks, stamp=stamp, model=model, configs=configs, **changes)
    return folder


def model_repo(readme: str | None = README, model: str = MODEL) -> None:
    HfApi().create_repo(model)
    if readme is not None:
        HfApi().upload_file(path_or_fileobj=readme.encode(), path_in_repo="README.md", repo_id=model)


def file_of(path: str, repo: str = MODEL, kind: str = "model", revision: str | None = None) -> str:
    return Path(hf_hub_download(repo, path, repo_type=kind, revision=revision)).read_text(encoding="utf-8")


def entries_of(path: str = ".eval_results/videosafety_vsb.yaml", **more: Any) -> dict[str, EvalResultEntry]:
    return {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(file_of(path, **more)))}


# --- into the model's repository ----------------------------------------------------------------------------------------------------


def test_figures_reach_the_models_card_and_eval_results(here: Hub, tmp_path: Path) -> None:
    model_repo()
    said = published("results", results(tmp_path / "r"), "--model", MODEL)
    entries = entries_of()
    assert set(entries) == {"vsb_hh", "vsb_safeq"}, "null, and what is too little to print, has no value to state"
    hh = entries["vsb_hh"]
    assert (hh.dataset_id, hh.dataset_revision, hh.value, hh.date) == (SET, COMMIT, 0.75, "2026-01-31T09:30:00+08:00")
    for words in (
        "n=16 scored of 18",
        "2 unscored, bounds 66.7 – 77.8 %",
        "judge offline@1",
        "policy v1 0123456789abcdef",
        "feedbeef",
        "lmms-eval",
    ):
        assert words in str(hh.notes)
    card = ModelCard.load(MODEL)
    index = {(one.dataset_type, one.dataset_config): one for one in card.data.eval_results}
    assert index["someone/other", None].metric_value == 0.5, "another's entry stays"
    ours = index[SET, "vsb_hh"]
    assert (ours.metric_type, ours.metric_value, ours.dataset_revision) == ("dsr", 0.75, COMMIT)
    wanted = {
        "n": 18,
        "n_scored": 16,
        "judge": "offline@1",
        "policy_hash": "0123456789abcdef",
        "data_hash": "feedbeef",
        "model_revision": "c0ffee",
    }
    assert wanted.items() <= ours.metric_args.items()
    assert ours.metric_args["bounds"] == [0.666667, 0.777778]
    assert (SET, "vsb_hs") not in index
    assert "Words of its author." in card.text
    table = {line.split(" | ")[0].removeprefix("| "): line for line in card.text.splitlines() if line.startswith("| vsb_")}
    assert "| 75.0 % |" in table["vsb_hh"]
    assert "| 16 of 18 |" in table["vsb_hh"]
    assert "| n=3, too few | – |" in table["vsb_sh"]
    assert "| no verdicts | – | 0 of 12 |" in table["vsb_hs"]
    assert "vsb_hs: 0 of 12 rows scored" in said
    card.validate(repo_type="model")


@LFS
def test_nothing_changed_is_no_commit_and_new_figures_replace_old_ones(here: Hub, tmp_path: Path) -> None:
    model_repo()
    folder = results(tmp_path / "r")
    published("results", folder, "--model", MODEL)
    assert "nothing has changed" in published("results", folder, "--model", MODEL)
    newer = results(tmp_path / "s", {"vsb_hh": some("vsb_hh", scores(0, 20))}, stamp="20260202_000000")
    published("results", newer, "--model", MODEL)
    entries, card = entries_of(), ModelCard.load(MODEL)
    assert (entries["vsb_hh"].value, entries["vsb_safeq"].value) == (1.0, 0.25), "other tasks keep their figures"
    assert len([one for one in card.data.eval_results if one.dataset_config == "vsb_hh"]) == 1
    assert card.text.count("## Safety evaluation") == 1


@LFS
def test_a_pull_request_leaves_main_alone_and_is_opened_once(here: Hub, tmp_path: Path) -> None:
    model_repo()
    before = HfApi().model_info(MODEL).sha
    said = published("results", results(tmp_path / "r"), "--model", MODEL, "--pr")
    assert "proposed" in said
    assert HfApi().model_info(MODEL).sha == before
    assert "vsb_hh" in entries_of(revision="refs/pr/1")
    assert "is open already" in published("results", results(tmp_path / "r"), "--model", MODEL, "--pr")
    assert len(list(HfApi().get_repo_discussions(MODEL))) == 1


@LFS
def test_a_repository_without_a_card_gets_one(here: Hub, tmp_path: Path) -> None:
    model_repo(readme=None)
    published("results", results(tmp_path / "r"), "--model", MODEL)
    assert ModelCard.load(MODEL).data.eval_results
    assert "nothing has changed" in published("results", results(tmp_path / "r"), "--model", MODEL)


@LFS
@pytest.mark.parametrize("stated", ["feedbeef", "other", None])
def test_the_place_of_the_embedded_set_is_named_and_checked(here: Hub, tmp_path: Path, stated: str | None) -> None:
    model_repo()
    api, embedded = HfApi(), {"name": "VSB-Open", "version": "1.0", "hash": "feedbeef"}
    api.create_repo(SET, repo_type="dataset")
    if stated:
        facts = json.dumps({"hash": stated}).encode()
        api.upload_file(path_or_fileobj=facts, path_in_repo="videosafety.json", repo_id=SET, repo_type="dataset")
    commit = api.dataset_info(SET).sha
    args = ("results", results(tmp_path / "r", data=embedded), "--model", MODEL)
    assert "--dataset vsb=ORG/NAME@COMMIT" in published(*args)
    assert ".eval_results/videosafety_vsb.yaml" not in api.list_repo_files(MODEL)
    if stated == "feedbeef":
        published(*args, "--dataset", f"vsb={SET}@{commit}")
        assert entries_of()["vsb_hh"].dataset_revision == commit
    else:
        assert "the run was made on feedbeef" in refused(*args, "--dataset", f"vsb={SET}@{commit}")


def test_secrets_and_paths_of_the_machine_are_not_published(here: Hub, tmp_path: Path) -> None:
    """lmms-eval's arguments hold a key and a token, and the model lay in a folder."""
    model_repo()
    local = str(tmp_path / "checkpoints" / "best")
    arguments = {
        "model": "videosafety_r1",
        "model_args": f"pretrained={local},api_key=very-private-key",
        "output_path": str(tmp_path / "out"),
    }
    config = {
        "model": "videosafety_r1",
        "model_args": arguments["model_args"],
        "limit": None,
        "resolved_cli_args": arguments | {"hf_token": TOKEN},
    }
    folder = results(tmp_path / "r", noted={"model": {"pretrained": local, "hub_token": TOKEN}}, config=config)
    said = published("results", folder, "--model", MODEL, "--evaluated-as", local, "--samples-repo", ROWS)
    sent = "\n".join([said, *here.texts, *(file_of(name) for name in HfApi().list_repo_files(MODEL))])
    assert f"pretrained={MODEL}" in sent
    for secret in ("very-private-key", TOKEN, str(tmp_path)):
        assert secret not in sent
    table = pyarrow.parquet.read_table(hf_hub_download(ROWS, "results.parquet", repo_type="dataset")).to_pylist()
    assert str(tmp_path) not in json.dumps(table)


# --- rows ---------------------------------------------------------------------------------------------------------------------------


def rows_of(task: str = "vsb_hh") -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(hf_hub_download(ROWS, f"data/{task}-00000-of-00001.parquet", repo_type="dataset")).to_pylist()


def test_rows_are_verdicts_and_hashes(here: Hub, tmp_path: Path) -> None:
    model_repo()
    published("results", results(tmp_path / "r"), "--model", MODEL, "--samples-repo", ROWS)
    rows = rows_of()
    assert len(rows) == 18
    assert {"query", "answer", "detail"}.isdisjoint(rows[0])
    assert ANSWER not in json.dumps(rows)
    assert [row["score"] for row in rows] == TASKS_SCORES
    assert rows[-1]["verdict"] == "unscored"
    assert rows[-1]["reason"]
    info = HfApi().dataset_info(ROWS)
    assert (info.private, info.gated) == (True, False)
    assert entries_of()["vsb_hh"].source_url == f"{here.url}/datasets/{ROWS}"


TASKS_SCORES = scores(4, 12, 2)


@LFS
def test_rows_with_text_go_behind_a_gate_that_is_there_first(here: Hub, tmp_path: Path) -> None:
    model_repo()
    published("results", results(tmp_path / "r"), "--model", MODEL, "--samples-repo", ROWS, "--with-samples")
    assert rows_of()[0]["answer"] == ANSWER
    assert rows_of()[0]["query"] == "Query 0 about weapons"
    info = HfApi().dataset_info(ROWS)
    assert info.gated == "auto"
    assert info.card_data["viewer"] is False
    assert "not-for-all-audiences" in info.card_data["tags"]
    order = [line for line in here.log if re.search(f"datasets/{ROWS}/(settings|commit|preupload)", line)]
    assert "settings" in order[0]


@LFS
def test_without_a_gate_no_row_with_text_and_no_figure_is_sent(here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_repo()
    monkeypatch.setattr(HfApi, "update_repo_settings", lambda *_, **__: None)
    before, seen = HfApi().model_info(MODEL).sha, len(here.texts)
    said = refused("results", results(tmp_path / "r"), "--model", MODEL, "--samples-repo", ROWS, "--with-samples")
    assert "does not confirm" in said
    assert HfApi().model_info(MODEL).sha == before
    assert ANSWER not in "".join(here.texts[seen:])
    assert not [line for line in here.log if f"datasets/{ROWS}/commit" in line]


@LFS
def test_queries_of_somebody_elses_set_stay_hashes(here: Hub, tmp_path: Path) -> None:
    """A set that was read in place of VSB-Open may be private: its queries are not passed on, even with text."""
    model_repo()
    own = {"name": "someone/own", "hub": f"someone/own@{COMMIT}", "revision": COMMIT}
    published("results", results(tmp_path / "r", data=own), "--model", MODEL, "--samples-repo", ROWS, "--with-samples")
    assert rows_of()[0]["query"] is None
    assert rows_of()[0]["answer"] == ANSWER


# --- what is refused ----------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "another model": ({"model": "someone/else"}, (), "--evaluated-as someone/else"),
    "a model that it is not evaluated as": ({}, ("--evaluated-as", "x"), "these are results of safety-lab/model, not of x"),
    "a partial run": ({"config": {"limit": 8}}, (), "--partial"),
    "text without a place": ({}, ("--with-samples",), "--samples-repo"),
    "no logs, but rows asked for": ({"samples": False}, ("--samples-repo", ROWS), "--log_samples"),
    "a set without a commit": ({}, ("--dataset", f"vsb={SET}"), "pin it"),
    "a set that was not run": ({}, ("--dataset", f"xstest={SET}@{COMMIT}"), "no task of xstest"),
    "an option that is none": ({}, ("--dataset", SET), "SET=ORG/NAME@COMMIT"),
}


@LFS
@pytest.mark.parametrize("case", REFUSED)
def test_results_that_cannot_be_published_are_refused(here: Hub, tmp_path: Path, case: str) -> None:
    changes, args, says = REFUSED[case]
    model_repo()
    before = HfApi().model_info(MODEL).sha
    assert says in refused("results", results(tmp_path / "r", **changes), "--model", MODEL, *args)
    assert HfApi().model_info(MODEL).sha == before


@LFS
def test_a_task_of_two_judges_and_a_broken_card_are_refused(here: Hub, tmp_path: Path) -> None:
    model_repo()
    results(tmp_path / "r")
    lines = [line | {"dsr": line["dsr"] | {"judge": "other@1"}} for line in some("vsb_hh", scores(1, 11))]
    results(tmp_path / "r" / "again", {"vsb_hh": lines})
    assert "vsb_hh is there twice, judged by other@1 and by offline@1" in refused("results", tmp_path / "r", "--model", MODEL)
    with pytest.raises(PublishError, match="mend it first"):
        merge_card("---\nmodel-index: [{results: 3}]\n---\n", MODEL, [])
    assert "not found" in refused("results", results(tmp_path / "s"), "--model", "safety-lab/model2", "--evaluated-as", MODEL)


@LFS
def test_a_dry_run_shows_the_card_as_it_would_be_and_sends_nothing(here: Hub, tmp_path: Path) -> None:
    model_repo()
    before = len(here.log)
    shown = published("results", results(tmp_path / "r"), "--model", MODEL, "--samples-repo", ROWS, "--dry-run")
    assert "Words of its author." in shown
    assert "| 75.0 % |" in shown
    assert ".eval_results/videosafety_vsb.yaml" in shown
    assert "data/vsb_hh-00000-of-00001.parquet" in shown
    assert {line.split()[0] for line in here.log[before:]} <= {"GET", "HEAD"}


# --- names and paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("org/name", "org/name"),
        ("/home/someone/checkpoints/best", "best"),
        ("results/demo/tiny", "tiny"),
        ("../tiny", "tiny"),
        ("C:\\models\\tiny", "tiny"),
    ],
)
def test_a_models_public_name_is_no_path(given: str, shown: str) -> None:
    assert lines_.public_name(given) == shown


def test_addresses_stay_and_paths_and_keys_go() -> None:
    text = f"local:http://127.0.0.1:8000/v1/x#m at /home/someone/a/b.json of org/name,hf_token={TOKEN}"
    assert lines_.public(text) == "local:http://127.0.0.1:8000/v1/x#m at b.json of org/name"


def test_lines_survive_the_table(tmp_path: Path) -> None:
    from videosafety.hub_cards.leaderboard import lines_of
    from videosafety.hub_cards.results import read_runs

    made = lines_of(read_runs([results(tmp_path / "r")], partial=False))
    pyarrow.parquet.write_table(lines_.to_table(made), tmp_path / "t.parquet")
    assert lines_.read_table(tmp_path / "t.parquet") == made
    assert any(line.value is None for line in made), "null stays null"
    pyarrow.parquet.write_table(pyarrow.table({"model": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(PublishError, match="another version"):
        lines_.read_table(tmp_path / "other.parquet")
    (tmp_path / "none.parquet").write_text("not")
    with pytest.raises(PublishError, match=r"no results\.parquet"):
        lines_.read_table(tmp_path / "none.parquet")
