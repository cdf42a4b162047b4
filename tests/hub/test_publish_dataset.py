"""Tests of `videosafety publish dataset` against the test Hub: round trips, gates, faults, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from huggingface_hub import DatasetCard, HfApi, ModelCard, hf_hub_download

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub
from publishing import elsewhere, own_rows, own_set, published, refused
from videosafety.hub_cards import croissant as croissants
from videosafety.hub_cards import dataset as datasets_
from videosafety.hub_cards.safety_set import load_set, tables
from videosafety.hub_cards.upload import PublishError
from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.hub_set import hub_rows
from videosafety.lmms_eval_tasks.vsb import dataset as vsb

REPO = "safety-lab/own"
LICENCE = ("--license", "cc-by-4.0")
RESULTS_FILE = ".eval_results/videosafety_vsb.yaml"
LFS = pytest.mark.parametrize("hub", ["lfs"], indirect=True)
UPLOAD = {False: "PUT /lfs/", True: "POST /v1/xorbs"}  # what carries the bytes, without and with Xet


def commit_in(output: str) -> str:
    return re.search(r"commit ([0-9a-f]{40})", output)[1]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub tries again at once where it would wait for up to 8 s."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return own_set(tmp_path / "own set")


# --- round trips --------------------------------------------------------------------------------------------------------------------

LOAD = """
import datasets, hashlib, json
def line(row):
    return {{k: v for k, v in row.items() if k != "video"}} | {{"sha": hashlib.sha256(row["video"]["bytes"]).hexdigest()}}
told = []
for streaming in (False, True):
    found = datasets.load_dataset("{repo}", revision="{commit}", streaming=streaming)
    assert isinstance(found["hh"].features["video"], datasets.Video)
    told.append({{name: [line(row) for row in split.cast_column("video", datasets.Video(decode=False))] for name, split in found.items()}})
print(json.dumps(told))
"""


@pytest.mark.slow  # `make test-slow`
def test_load_dataset_gives_back_rows_and_clips_streaming_too(here: Hub, home: Path, own: Path) -> None:
    commit = commit_in(published("dataset", own, "--repo", REPO, *LICENCE))
    whole, streamed = elsewhere(here, home, LOAD.format(repo=REPO, commit=commit))
    wanted: dict[str, list[dict[str, Any]]] = {"hh": [], "safeq": []}
    for row in own_rows():
        sha = hashlib.sha256((own / row["video"]).read_bytes()).hexdigest()
        plain = {key: value for key, value in row.items() if key != "video"}
        wanted[row["cell"]].append({"group": None} | plain | {"video_id": row["video"], "sha": sha})
    assert whole == streamed == wanted


@pytest.mark.slow  # `make test-slow`
@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_vsb_open_goes_round_from_the_hub_through_lmms_eval_to_a_models_card(
    here: Hub, home: Path, tiny: Path, lmms_eval: Callable[..., Any]
) -> None:
    """From the Hub into lmms-eval and back: the clips are recorded as VSB-Open's, and the model's card and .eval_results name the copy."""
    commit = commit_in(published("dataset", "vsb", "--repo", "safety-lab/vsb-open", "--cells", "hh", "--gate", "manual"))
    env = here.settings(home) | {"VIDEOSAFETY_VSB": f"safety-lab/vsb-open@{commit}"}
    args = ("--model", "videosafety_r1", "--model_args", f"pretrained={tiny},max_frames=2", "--gen_kwargs", "max_new_tokens=4")
    run = lmms_eval(*args, "--tasks", "vsb_hh", "--limit", "12", "--batch_size", "12", **env)
    noted = run.results()["configs"]["vsb_hh"]["metadata"]["run"]["data"]["vsb"]
    own = load_set("vsb", ["hh"])
    assert noted == {"name": "VSB-Open", "version": "1.0", "hash": own.hash, "hub": f"safety-lab/vsb-open@{commit}"}
    assert [sample["dsr"]["id"] for sample in run.samples("vsb_hh")] == [row["id"] for row in own.rows["hh"][:12]]
    assert here.store.repos["datasets/safety-lab/vsb-open"].gated == "manual"
    HfApi().create_repo("safety-lab/model")
    assert "--partial" in refused("results", run.folder, "--model", "safety-lab/model", "--evaluated-as", tiny)
    published("results", run.folder, "--model", "safety-lab/model", "--evaluated-as", tiny, "--partial")
    card, scored = ModelCard.load("safety-lab/model"), sum("score" in sample["dsr"] for sample in run.samples("vsb_hh"))
    assert f"| {scored} of 12 |" in card.text
    assert str(tiny) not in card.text
    assert (RESULTS_FILE in HfApi().list_repo_files("safety-lab/model")) is (scored >= 10), "below ten no rate is stated"
    if scored >= 10:
        entries = yaml.safe_load(Path(hf_hub_download("safety-lab/model", RESULTS_FILE)).read_text(encoding="utf-8"))
        assert entries[0]["dataset"] == {"id": "safety-lab/vsb-open", "task_id": "vsb_hh", "revision": commit}
        assert "partial run, --limit 12" in entries[0]["notes"]


@LFS
def test_a_set_of_ones_own_is_what_the_tasks_read(here: Hub, own: Path, cache: Path) -> None:
    commit = commit_in(published("dataset", own, "--repo", REPO, *LICENCE))
    rows, facts = hub_rows(f"{REPO}@{commit}", "hh", video=True)
    assert facts == {"name": REPO, "hub": f"{REPO}@{commit}", "revision": commit}
    assert [row["id"] for row in rows] == ["h0", "h1", "h2"]
    assert [Path(row["video"]).read_bytes() for row in rows] == [(own / row["video"]).read_bytes() for row in own_rows()[:3]]
    assert all(Path(row["video"]).is_relative_to(cache / "clips") for row in rows)
    assert rows[0]["video"] == rows[1]["video"], "one clip is written once"
    assert "video" not in hub_rows(f"{REPO}@{commit}", "safeq", video=False)[0][0]
    for named, cell, says in (
        (REPO, "hh", "pin the data set"),
        (f"{REPO}@main", "hh", "pin the data set"),
        (f"{REPO}@{commit}", "hs", "0 of the files data/hs-"),
        (f"{REPO}@{'0' * 40}", "hh", "could not fetch"),
        (f"safety-lab/nothing@{commit}", "hh", "could not fetch"),
    ):
        with pytest.raises(MissingData, match=says):
            hub_rows(named, cell, video=True)


@LFS
def test_rows_of_vsb_open_with_another_clip_are_refused(here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that shows other frames under VSB-Open's rows must not pass for it."""
    first = vsb.rows("safeq")[:1]
    monkeypatch.setattr(vsb, "rows", lambda cell: first)
    folder = own_set(tmp_path / "own", lambda rows: rows.__setitem__(slice(None), [first[0] | {"video": "clips/a.mp4"}]))
    commit = commit_in(published("dataset", folder, "--repo", REPO, *LICENCE))
    assert hub_rows(f"{REPO}@{commit}", "safeq", video=False)[1]["name"] == "VSB-Open"
    with pytest.raises(MissingData, match="has other frames"):
        hub_rows(f"{REPO}@{commit}", "safeq", video=True)


# --- the same again, changed, cut ---------------------------------------------------------------------------------------------------


def test_nothing_changed_is_no_commit_and_a_change_is_one(here: Hub, own: Path) -> None:
    args = ("dataset", own, "--repo", REPO, *LICENCE)
    first = commit_in(published(*args))
    again = published(*args)
    assert "nothing has changed" in again
    assert commit_in(again) == first
    assert commit_in(published(*args, "--cells", "safeq")) != first
    files = HfApi().list_repo_files(REPO, repo_type="dataset")
    assert [name for name in files if name.endswith(".parquet")] == ["data/safeq-00000-of-00001.parquet"], "what went stays away"


def test_an_upload_that_is_cut_shows_nothing_and_is_finished_by_the_same_command(here: Hub, own: Path, hasty: None) -> None:
    args = ("dataset", own, "--repo", REPO, *LICENCE)
    fault = here.fail(UPLOAD[here.has_xet], "cut", times=10**6)
    said = refused(*args)
    assert "run this again" in said
    assert HfApi().list_repo_files(REPO, repo_type="dataset") == [".gitattributes"], "nothing half-written is visible"
    fault.times = 0
    assert commit_in(published(*args))
    assert "data/hh-00000-of-00001.parquet" in HfApi().list_repo_files(REPO, repo_type="dataset")


@LFS
@pytest.mark.parametrize(
    ("pattern", "kind", "says"),
    [
        ("POST /api/datasets/.*/commit/", "403", "use a token that may write there"),
        ("POST /api/datasets/.*/commit/", "412", "somebody else changed it meanwhile"),
        ("POST /api/repos/create", "401", "hf auth login"),
        ("POST /api/validate-yaml", "400", "metadata"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_a_token(here: Hub, own: Path, hasty: None, pattern: str, kind: str, says: str) -> None:
    token = here.settings(own)["HF_TOKEN"]
    here.fail(pattern, kind, times=99, message=f"no: {token}")
    said = refused("dataset", own, "--repo", REPO, *LICENCE)
    assert says in said
    assert token not in said


# --- the gate -----------------------------------------------------------------------------------------------------------------------

CASES = {
    "harmful": (lambda rows: None, (), True),
    "harmless cells only": (lambda rows: None, ("--cells", "safeq"), False),
    "a label is missing": (lambda rows: rows[4].pop("visual_label"), ("--cells", "safeq"), True),
    "one harmful query": (lambda rows: rows[4].update(textual_label=1), ("--cells", "safeq"), True),
    "one harmful video": (lambda rows: rows[4].update(visual_label=1), ("--cells", "safeq"), True),
    "harmless, gated because the user says so": (lambda rows: None, ("--cells", "safeq", "--gate", "manual"), "manual"),
}


@LFS
@pytest.mark.parametrize("case", CASES)
def test_gate_viewer_and_tag_follow_from_the_labels(here: Hub, tmp_path: Path, case: str) -> None:
    change, args, gated = CASES[case]
    published("dataset", own_set(tmp_path / "own", change), "--repo", REPO, *LICENCE, *args)
    info = HfApi().dataset_info(REPO)
    card = DatasetCard.load(REPO)
    data = card.data.to_dict()
    assert info.private is True
    assert info.gated == {True: "auto", False: False, "manual": "manual"}[gated]
    assert ("not-for-all-audiences" in data["tags"]) is (gated is True)
    assert data.get("viewer", True) is (gated is not True)
    assert ("extra_gated_prompt" in data) is ("extra_gated_fields" in data) is bool(gated)
    assert {split["split"] for split in data["configs"][0]["data_files"]} == ({"safeq"} if args else {"hh", "safeq"})
    card.validate(repo_type="dataset")


@LFS
def test_nothing_is_sent_where_the_gate_cannot_be_set(here: Hub, own: Path) -> None:
    here.fail("PUT .*/settings", "403", times=99)
    said = refused("dataset", own, "--repo", REPO, *LICENCE)
    assert "could not be turned on" in said
    assert here.seen("/commit/|/lfs|preupload") == 0


@LFS
def test_nothing_is_sent_where_the_gate_is_not_confirmed(here: Hub, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "update_repo_settings", lambda *_, **__: None)
    said = refused("dataset", own, "--repo", REPO, *LICENCE)
    assert "does not confirm" in said
    assert here.seen("/commit/|/lfs|preupload") == 0


@LFS
def test_public_is_shown_last_and_a_stricter_gate_stays(here: Hub, own: Path) -> None:
    HfApi().create_repo(REPO, repo_type="dataset", private=True)
    HfApi().update_repo_settings(REPO, repo_type="dataset", gated="manual")
    published("dataset", own, "--repo", REPO, *LICENCE, "--public")
    info = HfApi().dataset_info(REPO)
    assert (info.private, info.gated) == (False, "manual")
    order = [line for line in here.log if re.search("/commit/main|PUT .*/settings", line)]
    assert "/commit/" in order[-2]
    assert "/settings" in order[-1]


# --- what goes up -------------------------------------------------------------------------------------------------------------------


@LFS
def test_a_dry_run_shows_all_and_sends_nothing(here: Hub, own: Path) -> None:
    shown = published("dataset", own, "--repo", REPO, *LICENCE, "--dry-run", "--benchmark", "inspect-ai")
    for name in ("README.md", "croissant.json", "eval.yaml", "videosafety.json", "data/hh-00000-of-00001.parquet"):
        assert re.search(rf"^ +[\d,]+  {re.escape(name)}$", shown, re.MULTILINE), name
    assert "license: cc-by-4.0" in shown
    assert "access on request (auto)" in shown
    assert here.log == []


def test_statistics_are_counted_from_the_rows(own: Path) -> None:
    found = tables(load_set(str(own), licence="mit"))
    assert found["Cells"][1] == [
        ("hh", "harmful video, harmful query", "3", "2", "harmful", "harmful"),
        ("safeq", "safe video, safe look-alike query", "2", "1", "safe", "safe"),
    ]
    assert found["Categories"] == (("Categories", "hh", "safeq", "All"), [("weapons", "3", "2", "5")])
    assert found["Clips"][1][0] == ("Seconds", "1.0", "1.5", "2.0", "4.5")
    assert found["Clips"][1][2] == ("Width × height", "448×336", "–", "448×336", "–")


def test_eval_yaml_is_as_the_hub_documents_it_and_only_when_asked_for(own: Path, tmp_path: Path) -> None:
    found = load_set(str(own), licence="mit")
    assert "eval.yaml" not in datasets_.make(found, REPO, tmp_path / "a").upload.files
    body = yaml.safe_load(datasets_.make(found, REPO, tmp_path / "b", benchmark="inspect-ai").upload.files["eval.yaml"])
    assert set(body) == {"name", "description", "evaluation_framework", "tasks"}
    assert body["tasks"] == [{"id": f"vsb_{cell}", "config": "default", "split": cell} for cell in ("hh", "safeq")]


def test_columns_have_their_kind_whatever_the_rows_hold(tmp_path: Path) -> None:
    """Spans that are all empty, an integer among them, a key that is null everywhere, and rows without a video."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[0].update(harm_spans=[[0, 1]], nothing=None)
        rows[4].pop("video")

    found = load_set(str(own_set(tmp_path / "own", change)), licence="mit")
    assert "nothing" not in datasets_.columns(found)
    for cell, spans, videos in (("hh", [[[0.0, 1.0]], [[0.5, 1.5]], [[0.5, 1.5]]], 3), ("safeq", [[], []], 1)):
        alone = load_set(str(tmp_path / "own"), [cell], licence="mit")
        table = pyarrow.parquet.read_table(datasets_.write_parquet(alone, tmp_path / cell)[0])
        assert table.column("harm_spans").to_pylist() == spans
        assert table.schema.field("harm_spans").type == pyarrow.list_(pyarrow.list_(pyarrow.float64()))
        assert sum(row is not None for row in table.column("video").to_pylist()) == videos


def test_large_cells_are_cut_into_parts(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets_, "SHARD", 1)
    files = datasets_.write_parquet(load_set(str(own), licence="mit"), tmp_path)
    assert [file.name for file in files] == [f"{c}-{i:05d}-of-{n:05d}.parquet" for c, n in (("hh", 3), ("safeq", 2)) for i in range(n)]
    rows = [row["id"] for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    assert rows == ["h0", "h1", "h2", "s0", "s1"]


def test_croissant_is_checked_whole_or_says_that_it_is_not(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = datasets_.make(load_set(str(own), licence="mit"), REPO, tmp_path)
    described = json.loads(made.upload.files["croissant.json"])
    assert made.croissant_check == "mlcroissant"
    assert {file["sha256"] for file in described["distribution"]} == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in made.upload.files.values() if isinstance(path, Path)
    }
    broken = described | {"recordSet": [{**described["recordSet"][0], "field": [{"@type": "cr:Field", "@id": "x", "name": "x"}]}]}
    with pytest.raises(PublishError, match="refused by mlcroissant"):
        croissants.check(broken)
    monkeypatch.setitem(__import__("sys").modules, "mlcroissant", None)
    assert croissants.check(described) == croissants.PARTIAL
    for fault, change in {
        "license is missing": {"license": ""},
        "no hash": {"distribution": [{**file, "sha256": "abc"} for file in described["distribution"]]},
        "not listed": {"distribution": described["distribution"][:1]},
    }.items():
        with pytest.raises(PublishError, match=fault):
            croissants.check(described | change)


def test_the_card_escapes_what_rows_say_and_keeps_the_sets_own_words(tmp_path: Path) -> None:
    own = own_set(tmp_path / "own", lambda rows: rows[0].update(category="<img src=x> | a`b"))
    words = "---\nlicense: mit\n---\n# Title\n\nOur words, [here](local.md) and [there](https://a.example).\n## Part\n"
    (own / "README.md").write_text(words, encoding="utf-8")
    card = datasets_.make(load_set(str(own), licence="mit", title="My set"), REPO, tmp_path / "out").card
    assert "| &lt;img src=x&gt; \\| a'b | 1 | 0 | 1 |" in card
    assert "# My set\n" in card
    assert "Our words, here and [there](https://a.example)." in card
    assert "### Part" in card


# --- what is refused ----------------------------------------------------------------------------------------------------------------


def _text(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["extra"] = row["id"] if row["id"] == "h0" else 3


REFUSED: dict[str, tuple[Callable[[list[dict[str, Any]]], Any] | None, tuple[str, ...], str]] = {
    "no licence": (None, (), "--license"),
    "an unknown cell": (None, (*LICENCE, "--cells", "hs"), "has no cell hs; it has hh, safeq"),
    "a cell that cannot name a split": (lambda rows: rows[0].update(cell="h h"), LICENCE, "'h h' cannot name a split"),
    "a video that is not there": (lambda rows: rows[0].update(video="clips/z.mp4"), LICENCE, "row h0: .*z.mp4 is not there"),
    "a video that is none": (lambda rows: rows[0].update(video="rows.jsonl"), LICENCE, "row h0: .*is no video"),
    "a video outside the folder": (lambda rows: rows[0].update(video="../x.mp4"), LICENCE, "line 1.*lies outside the folder"),
    "one column, two kinds": (_text, LICENCE, "row h1: extra is int, elsewhere str"),
    "a column of objects": (lambda rows: rows[0].update(extra={"a": 1}), LICENCE, "row h0: extra is dict"),
    "an id twice": (lambda rows: rows[1].update(id="h0"), LICENCE, "line 2: the id h0 is there twice"),
    "no rows": (lambda rows: rows.clear(), LICENCE, "has no rows"),
    "a key in a row": (
        lambda rows: rows[1].update(query=f"My key is hf_{'a' * 34}"),
        LICENCE,
        "rows.jsonl, line 2: holds a Hugging Face token",
    ),
    "a gate that is none": (None, (*LICENCE, "--gate", "open"), "give auto or manual"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_set_that_is_not_as_it_must_be_is_refused(tmp_path: Path, case: str) -> None:
    change, args, says = REFUSED[case]
    said = refused("dataset", own_set(tmp_path / "own", change), "--repo", REPO, *args, "--dry-run")
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("name", "repo", "args", "says"),
    [
        ("figstep", REPO, (), "somebody else's set"),
        ("/nowhere", REPO, (), "no such folder"),
        ("vsb", "no-slash", (), "give ORG/NAME"),
        ("vsb", "a/b/c", (), "give ORG/NAME"),
        ("vsb", REPO, LICENCE, "its own title and licence"),
    ],
)
def test_a_name_that_cannot_be_published_is_refused(name: str, repo: str, args: tuple[str, ...], says: str) -> None:
    assert says in refused("dataset", name, "--repo", repo, *args, "--dry-run")
