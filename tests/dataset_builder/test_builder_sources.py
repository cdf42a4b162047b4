"""What sources give: rows of manifests, folders and shards one by one, hostile ones beside good ones. Nothing is decoded."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from stage_cases import config

from videosafety.dataset_builder import ingest
from videosafety.dataset_builder.config import Source
from videosafety.dataset_builder.lists import dump_line
from videosafety.dataset_builder.rows import Rejection, Row

GOOD = '{"file": "good.mp4"}'


def found(root: Path, **source: Any) -> tuple[list[Row], dict[str, str]]:
    """Rows, and reasons by where; both as they go into files."""
    outcomes = list(ingest.ingest(config(root, sources=[Source("s", **source)])))
    rows = [outcome for outcome in outcomes if not isinstance(outcome, Rejection)]
    reasons = {outcome.id: outcome.reason for outcome in outcomes if isinstance(outcome, Rejection)}
    for value in (*rows, reasons):
        dump_line(value).encode()
    return rows, reasons


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "good.mp4"):
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


# --- manifests ------------------------------------------------------------------------------------------------------------------------

JSON_ROWS = {
    "no file": ('{"file": null}', "has no file"),
    "digits": ('{"file": "a.mp4", "visual_label": ' + "1" * 5_000 + "}", "thousands of digits"),
    "a long label": ('{"file": "a.mp4", "visual_label": ' + "1" * 4_000 + "}", "visual_label must be 0"),
    "a span beyond floats": ('{"file": "a.mp4", "harm_spans": [[0, 1' + "0" * 400 + "]]}", "harm_spans must be"),
    "an endless span": ('{"file": "a.mp4", "harm_spans": [[0, Infinity]]}', "harm_spans must be"),
    "half a pair in a title": ('{"file": "a.mp4", "title": "x\\ud800"}', "title holds half a surrogate pair"),
    "half a pair in a name": ('{"file": "caf\\udce9.mp4"}', "file holds half a surrogate pair"),
    "half a pair in an origin": ('{"file": "a.mp4", "origin": "\\udfff"}', "origin holds half a surrogate pair"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "must be a JSON object"),
}


@pytest.mark.parametrize(("line", "reason"), JSON_ROWS.values(), ids=JSON_ROWS.keys())
def test_a_hostile_line_is_a_reason_and_costs_no_other(line: str, reason: str, folder: Path) -> None:
    (folder / "m.jsonl").write_text(f"{line}\n{GOOD}\n")
    rows, reasons = found(folder, manifest="m.jsonl")
    assert reason in reasons.pop("s/m.jsonl, line 1")
    assert not reasons
    assert [row["id"] for row in rows] == ["s/good.mp4"]


def test_null_is_nothing_said(folder: Path) -> None:
    line = {"file": "a.mp4", "harm_spans": None, "title": None, "visual_label": None}
    (folder / "m.jsonl").write_text(json.dumps(line))
    ((row,), reasons) = found(folder, manifest="m.jsonl")
    assert (row["text"], row["told"]["harm_spans"], reasons) == ("", None, {})


CSV_ROWS: dict[str, tuple[bytes, dict[int, str]]] = {
    "a long cell": (b"a.mp4," + b"x" * 140_000 + b",\n", {2: "not CSV: field larger than field limit"}),
    "a carriage return": (b"a.mp4,x\ry,\n", {2: "not CSV: new-line character seen in unquoted field"}),
    "digits": (b"a.mp4,x," + b"1" * 5_000 + b"\n", {2: "visual_label is not JSON that can be read"}),
    "a quote that is not closed": (b'a.mp4,"x,\n', {2: "not CSV"}),
    "a quote that swallows lines": (b'a.mp4,"x,\na.mp4,"y",1\n', {2: "not CSV"}),
    "a quote before bytes that are no text": (b'a.mp4,"x\n\xff\n', {2: "not CSV: a quote is not closed", 3: "not UTF-8"}),
    "too few cells": (b"a.mp4\n", {2: "1 cells under 3 columns"}),
    "a row without end": (b'"' + (b'\n","' + b"x" * 1000) * 1_100 + b'"\n', {2: "not CSV: a row over 1 MiB"}),
    "blank lines": (b"\n  \n\r\n", {}),
}


@pytest.mark.parametrize(("lines", "expected"), CSV_ROWS.values(), ids=CSV_ROWS.keys())
def test_a_torn_row_is_a_reason_and_costs_no_other(lines: bytes, expected: dict[int, str], folder: Path) -> None:
    (folder / "m.csv").write_bytes(b"file,title,visual_label\n" + lines + b"good.mp4,z,0\n")
    rows, reasons = found(folder, manifest="m.csv")
    for number, reason in expected.items():
        assert reason in reasons[f"s/m.csv, line {number}"]
    assert expected or not reasons
    assert rows[-1]["id"] == "s/good.mp4"


def test_a_quoted_cell_may_hold_ends_of_lines(folder: Path) -> None:
    (folder / "m.csv").write_bytes(b'file,description\r\na.mp4,"one\r\ntwo, ""three"""\r\ngood.mp4,x\r\nlost.mp4,y\r\n')
    rows, reasons = found(folder, manifest="m.csv")
    assert [row["text"] for row in rows] == ['one\r\ntwo, "three"', "x"]
    assert reasons == {"s/m.csv, line 5": "'lost.mp4' is no file"}


# --- folders ----------------------------------------------------------------------------------------------------------------------------

NAMES = {
    "a video": (b"caf\xe9.mp4", r"caf\udce9.mp4", "its path is not UTF-8; rename it"),
    "a suffix": (b"x.mp\xe9", r"x.mp\udce9", r".mp\udce9 is no kind of video file"),
}


@pytest.mark.parametrize(("name", "shown", "reason"), NAMES.values(), ids=NAMES.keys())
def test_a_name_that_is_no_utf8_is_spelt_out_in_the_report(name: bytes, shown: str, reason: str, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"video")
    rows, reasons = found(folder, folder=".")
    assert reasons == {f"s/{shown}": reason}
    assert [row["id"] for row in rows] == ["s/a.mp4", "s/good.mp4"]


# --- keys -------------------------------------------------------------------------------------------------------------------------------

CHANGES = {"origin": {"origin": "b"}, "licence": {"licence": "mit"}, "nothing": {}}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES.keys())
def test_a_video_is_done_again_where_its_source_says_something_else_of_it(name: str, change: dict[str, str], folder: Path) -> None:
    said = {"origin": "a", "licence": "cc-by-4.0"}
    before, after = (found(folder, folder=".", **settings)[0] for settings in (said, said | change))
    assert ([row["key"] for row in before] != [row["key"] for row in after]) is (name != "nothing")


# --- shards -----------------------------------------------------------------------------------------------------------------------------


def pack(file: Path, *members: tuple[str, bytes], mode: str = "w") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode, format=tarfile.GNU_FORMAT) as shard:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


TITLE = b'{"title": "t"}'
SAMPLES: dict[str, tuple[list[tuple[str, bytes]], dict[str, str], dict[str, str]]] = {
    "dots in names": (
        [("VID_2024.01.05.mp4", b"1"), ("VID_2024.01.06.mp4", b"2"), ("VID_2024.01.06.json", TITLE), ("clip.v2.MP4", b"3")],
        {"VID_2024.01.05.mp4": "", "VID_2024.01.06.mp4": "t", "clip.v2.MP4": ""},
        {},
    ),
    "two videos of a sample": (
        [("k.mp4", b"1"), ("k.webm", b"2"), ("k.json", TITLE)],
        {"k.mp4": "t"},
        {"k.webm": "its sample has another video, which stands: k.mp4"},
    ),
    "JSON of no video": ([("k.json", TITLE), ("l.mp4", b"1"), ("l.txt", b"x")], {"l.mp4": ""}, {"k.json": "tells of no video"}),
    "one name in two places": (
        [("k.mp4", b"1"), ("l.mp4", b"2"), ("k.mp4", b"333")],
        {"k.mp4": "", "l.mp4": ""},
        {"k.mp4": "the same file is named twice"},
    ),
    "null": ([("k.mp4", b"1"), ("k.json", b'{"file": null, "harm_spans": null}')], {"k.mp4": ""}, {}),
    "digits": ([("k.mp4", b"1"), ("k.json", b'{"visual_label": ' + b"1" * 5_000 + b"}")], {}, {"k.mp4": "thousands of digits"}),
    "long JSON": ([("k.mp4", b"1"), ("k.json", b" " * (1 << 20) + b"{}")], {}, {"k.mp4": "its .json: over 1 MiB"}),
    "no name": ([("/", b"1"), ("..", b"1"), (".mp4", b"1"), ("k.mp4", b"1")], {"k.mp4": ""}, {}),
    "a name that is no UTF-8": ([("caf\udce9.mp4", b"1")], {}, {r"caf\udce9.mp4": "its path is not UTF-8"}),
}


@pytest.mark.parametrize(("members", "expected", "turned_away"), SAMPLES.values(), ids=SAMPLES.keys())
def test_every_video_of_a_shard_is_a_row_or_a_reason(
    members: list[tuple[str, bytes]], expected: dict[str, str], turned_away: dict[str, str], tmp_path: Path
) -> None:
    pack(tmp_path / "x.tar", *members)
    rows, reasons = found(tmp_path, shards="*.tar")
    assert {row["id"]: row["text"] for row in rows} == {f"s/x.tar!{name}": text for name, text in expected.items()}
    assert reasons.keys() == {f"s/x.tar!{name}" for name in turned_away}
    for name, reason in turned_away.items():
        assert reason in reasons[f"s/x.tar!{name}"]
    first = {name: data for name, data in reversed(members)}
    for row in rows:
        assert Path(row["file"]).read_bytes() == first[row["id"].partition("!")[2]]


PATTERNS = {
    "x/**/*.tar": {"s/train/0.tar!k.mp4", "s/val/0.tar!k.mp4"},
    "./x/*/0.tar": {"s/train/0.tar!k.mp4", "s/val/0.tar!k.mp4"},
    "x/train/*.tar": {"s/0.tar!k.mp4"},
    "x/train/0.tar": {"s/0.tar!k.mp4"},
    "{root}/x/v*/0.tar": {"s/val/0.tar!k.mp4"},
}


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS.items(), ids=PATTERNS.keys())
def test_shards_are_named_from_the_folder_before_the_first_wildcard(pattern: str, expected: set[str], tmp_path: Path) -> None:
    root = tmp_path / ("set" if "{root}" in pattern else "set [1]")
    for part in ("train", "val"):
        pack(root / "x" / part / "0.tar", ("k.mp4", part.encode()))
    rows, reasons = found(root, shards=pattern.format(root=root))
    assert {row["id"] for row in rows} == expected
    assert not reasons


def test_a_shard_with_a_monstrous_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar.gz", ("j.mp4", b"0"), ("k.mp4", b"1"), ("x" * (8 << 20), b"2"), mode="w:gz")
    os.mkfifo(tmp_path / "b.tar.gz")
    pack(tmp_path / "c.tar", ("l.mp4", b"1"))
    rows, reasons = found(tmp_path, shards="*.tar*")
    assert [row["id"] for row in rows] == ["s/a.tar.gz!j.mp4", "s/c.tar!l.mp4"]
    assert "damaged behind it" in reasons["s/a.tar.gz!k.mp4"]
    assert "headers of more than 1,048,576 bytes" in reasons["s/a.tar.gz"]
    assert reasons["s/b.tar.gz"] == "no regular file"
