"""Local sets: good rows come out whole, and every wrong one ends the run with one line that names file, line and mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import write_set
from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, cache_dir, local_copy, read_rows
from videosafety.lmms_eval_tasks.vsb import docs as vsb_docs
from videosafety.lmms_eval_tasks.vse import docs as vse_docs

GOOD: dict[str, Any] = {"id": "a", "cell": "hh", "query": "How?"}
FULL = GOOD | {"video": "clips/1.mp4", "video_id": "v1", "category": "theft", "language": "en"}
FULL |= {"visual_label": 1, "textual_label": 0, "harm_spans": [[0.0, 1.5], [3, 4]]}


def test_missing_data_is_a_system_exit_whose_text_is_printed() -> None:
    error = MissingData("videosafety: what is missing")
    assert isinstance(error, SystemExit)
    assert not isinstance(error, Exception)  # lmms-eval's retry catches Exception
    assert error.code == str(error) == "videosafety: what is missing"


# --- good rows --------------------------------------------------------------------------------------------------------------------


def test_good_rows_come_out_as_written_with_absolute_videos(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "vsb", [FULL, GOOD | {"id": "b"}, GOOD | {"id": "c", "video": "clips/1.mp4"}])
    full, bare, third = read_rows(folder)
    video = str(folder / "clips/1.mp4")
    assert full == FULL | {"video": video}  # a video that is not there is kept
    assert bare == GOOD | {"id": "b"}
    assert third == GOOD | {"id": "c", "video": video, "video_id": "clips/1.mp4"}


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("وكيف؟ 怎么？ कैसे", id="other scripts"),
        pytest.param("one\u2028two\u2029three\x85four\x0bfive", id="line ends that are none in JSON lines"),
        pytest.param('"quoted" \\ {{jinja}} \n two lines', id="characters that mean something elsewhere"),
        pytest.param("", id="empty"),
        pytest.param("x" * 100_000, id="long"),
    ],
)
@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "as it is"])
def test_any_query_survives(tmp_path: Path, query: str, escaped: bool) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD | {"query": query}, ensure_ascii=escaped) + "\n", encoding="utf-8")
    assert [row["query"] for row in read_rows(tmp_path)] == [query]


def test_the_last_line_needs_no_line_end_and_windows_line_ends_do(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\r\n".join(json.dumps(GOOD | {"id": i}).encode() for i in "ab"))
    assert [row["id"] for row in read_rows(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("video", ["1.mp4", "a/../1.mp4", "./1.mp4", "two..dots.mp4", "..hidden/1.mp4", "ein Film ä.mp4", "link.mp4"])
def test_videos_inside_the_folder_are_fine(tmp_path: Path, video: str) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "1.mp4")
    (row,) = read_rows(write_set(tmp_path, [GOOD | {"video": video}]))
    assert Path(row["video"]) == (tmp_path / video).resolve()
    assert row["video_id"] == video


def test_a_folder_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    write_set(tmp_path / "real", [FULL])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_rows(tmp_path / "link")[0]["video"] == str(tmp_path / "real" / "clips/1.mp4")


# --- wrong rows -------------------------------------------------------------------------------------------------------------------


def line(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != key}).encode()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        pytest.param(b"not json", "not JSON", id="no JSON"),
        pytest.param(b'{"id": "a", "cell": "hh",', "not JSON", id="half an object"),
        pytest.param(b"", "not JSON", id="an empty line"),
        pytest.param(line() + line(id="b"), "not JSON", id="two objects on a line"),
        pytest.param(b'["a", "hh", "How?"]', "must be a JSON object", id="an array"),
        pytest.param(b'"a"', "must be a JSON object", id="a string"),
        pytest.param(b"null", "must be a JSON object", id="null"),
        pytest.param(without("id"), "id is missing", id="no id"),
        pytest.param(without("cell"), "cell is missing", id="no cell"),
        pytest.param(without("query"), "query is missing; every row needs id, cell, query", id="no query"),
        pytest.param(line(id=7), "id must be a str, got 7", id="a number as id"),
        pytest.param(line(query=["How?"]), "query must be a str", id="a list as query"),
        pytest.param(line(query=None), "query must be a str, got None", id="null as query"),
        pytest.param(line(video=None), "video must be a str, got None", id="null as video"),
        pytest.param(line(category=3), "category must be a str, got 3", id="a number as category"),
        pytest.param(line(visual_label="1"), "visual_label must be a int, got '1'", id="a string as label"),
        pytest.param(line(visual_label=True), "visual_label must be a int, got True", id="a bool as label"),
        pytest.param(line(textual_label=False), "textual_label must be a int, got False", id="false as label"),
        pytest.param(line(visual_label=1.0), "visual_label must be a int", id="a float as label"),
        pytest.param(line(visual_label=2), "labels are 0", id="label 2"),
        pytest.param(line(textual_label=-100), "labels are 0", id="label -100"),
        pytest.param(line(harm_spans="0-3"), "harm_spans must be a list", id="a string as spans"),
        pytest.param(line(id="first"), "the id first is there twice", id="an id twice"),
        pytest.param(line(video="../x.mp4"), "'../x.mp4' lies outside the folder", id="a path outside"),
        pytest.param(line(video="a/../../x.mp4"), "lies outside the folder", id="a path that leaves half-way"),
        pytest.param(line(video="/etc/passwd"), "'/etc/passwd' lies outside the folder", id="an absolute path"),
        pytest.param(line(video="out/x.mp4"), "lies outside the folder", id="a linked folder that leads outside"),
        pytest.param(line(video="out.mp4"), "lies outside the folder", id="a linked file that leads outside"),
        # These four break something later if they pass here, and lmms-eval then shows a RetryError without a cause.
        pytest.param(line().replace(b"How?", b"Caf\xe9"), "UTF-8", id="not UTF-8"),
        pytest.param(line(video="a\0b.mp4"), "video", id="a path with a NUL"),
        pytest.param(line(harm_spans=[["a", "b"]]), "harm_spans", id="spans that are no numbers"),
        pytest.param(line(harm_spans=[1.0, 2.0]), "harm_spans", id="spans that are no pairs"),
    ],
)
def test_a_wrong_row_is_one_line_that_names_file_and_line(tmp_path: Path, bad: bytes, says: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "vsb"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "out.mp4").symlink_to(tmp_path / "elsewhere" / "x.mp4")
    (folder / "rows.jsonl").write_bytes(b"\n".join([line(id="first"), bad, line(id="last")]) + b"\n")
    with pytest.raises(MissingData) as caught:
        read_rows(folder)
    message = str(caught.value)
    assert message.startswith(f"videosafety: {folder / 'rows.jsonl'}, line 2: ")
    assert says in message
    assert "\n" not in message


def test_no_rows_file(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        read_rows(tmp_path)
    assert str(tmp_path / "rows.jsonl") in str(caught.value)
    assert "is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "video", "says"),
    [
        pytest.param([], True, "has no row with cell 'sh' and a video", id="no rows"),
        pytest.param([GOOD], False, "has no row with cell 'sh'", id="another cell"),
        pytest.param([GOOD | {"cell": "sh"}], True, "has no row with cell 'sh' and a video", id="no video"),
        pytest.param([GOOD | {"cell": "SH"}], False, "has no row with cell 'sh'", id="capitals"),
    ],
)
def test_a_set_without_rows_of_the_cell(tmp_path: Path, rows: list[dict[str, Any]], video: bool, says: str) -> None:
    with pytest.raises(MissingData) as caught:
        vsb_docs.rows_of_folder("vsb", write_set(tmp_path, rows), "sh", video)
    assert says in str(caught.value)
    assert str(tmp_path / "rows.jsonl") in str(caught.value)


def test_no_key_of_a_row_is_lost_when_the_first_row_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    write_set(tmp_path / "vsb", [GOOD, FULL | {"id": "b"}])
    found = list(vsb_docs.hh_text(None))  # type: ignore[arg-type]
    assert found[1]["category"] == "theft"
    assert found[1]["video_id"] == "v1"


# --- where things lie -------------------------------------------------------------------------------------------------------------


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    for unset in (lambda: monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", ""), lambda: monkeypatch.delenv("VIDEOSAFETY_CACHE_DIR")):
        unset()
        assert cache_dir() == tmp_path / ".cache" / "videosafety"


def test_local_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert local_copy("vsb") is None
    for value in ("", str(tmp_path), str(tmp_path / "missing")):
        monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", value)
        assert local_copy("vsb") is None
    (tmp_path / "vsb").mkdir()
    (tmp_path / "vse").write_text("a file is no set")
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    assert local_copy("vsb") == tmp_path / "vsb"
    assert local_copy("vse") is None


@pytest.mark.parametrize("name", ["nonsense", ""])
def test_an_unknown_judge_ends_the_run_before_any_answer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", name)
    with pytest.raises(MissingData, match=r"videosafety: unknown judge .*offline, refusal"):
        run.start()


# --- the authors' set -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "says"),
    [
        pytest.param(None, "VIDEOSAFETY_VSE=<folder or Hub dataset id@revision>", id="nothing set"),
        pytest.param("", "VIDEOSAFETY_VSE=<folder or Hub dataset id@revision>", id="set to nothing"),
        pytest.param("someone/VideoSafetyEval", "pin its revision: someone/VideoSafetyEval@<commit>", id="a Hub id without a revision"),
        pytest.param("someone/VideoSafetyEval@", "pin its revision", id="an empty revision"),
        pytest.param("/no/such/folder", "is no folder here", id="a folder that is not there"),
        pytest.param("not a repo id@main", "could not fetch VIDEOSAFETY_VSE=not a repo id@main", id="no Hub id at all"),
    ],
)
def test_vse_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str | None, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    if named is not None:
        monkeypatch.setenv("VIDEOSAFETY_VSE", named)
    with pytest.raises(MissingData) as caught:
        vse_docs.folder()
    assert says in str(caught.value)
    assert str(caught.value).startswith("videosafety: ")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[Any] = []

    def offline(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        raise LocalEntryNotFoundError("no network\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setenv("VIDEOSAFETY_VSE", "someone/set@abc123")
    with pytest.raises(MissingData, match=r"could not fetch VIDEOSAFETY_VSE=someone/set@abc123 from the Hub: no network$"):
        vse_docs.folder()
    assert asked == [("someone/set", {"repo_type": "dataset", "revision": "abc123"})]


def named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("VIDEOSAFETY_VSE", str(folder))


def in_data_dir(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(folder.parent))


@pytest.mark.parametrize("how", [named, in_data_dir], ids=["VIDEOSAFETY_VSE", "VIDEOSAFETY_DATA_DIR"])
def test_vse_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: Callable[..., None]) -> None:
    folder = write_set(tmp_path / "vse", [FULL | {"id": cell, "cell": cell} for cell in ("hh", "sh", "safeq")])
    how(monkeypatch, folder)
    assert vse_docs.folder() == folder
    for cell in ("hh", "sh", "safeq"):
        (row,) = getattr(vse_docs, cell)(None)
        assert (row["id"], row["video"]) == (cell, str(folder / "clips/1.mp4"))
    assert run.SETTINGS["data"]["vse"]["folder"] == str(folder)


def test_vse_from_the_hub_is_recorded_with_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    folder = write_set(tmp_path / "snapshot", [FULL])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(folder))
    monkeypatch.setenv("VIDEOSAFETY_VSE", "someone/set@abc123")
    assert len(vse_docs.hh(None)) == 1  # type: ignore[arg-type]
    recorded = run.SETTINGS["data"]["vse"]
    assert (recorded.get("repo"), recorded.get("revision")) == ("someone/set", "abc123")
