"""What sources give: rows of manifests, folders and shards one by one, hostile ones beside good ones. Nothing is decoded."""

from __future__ import annotations

import json
import os
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
