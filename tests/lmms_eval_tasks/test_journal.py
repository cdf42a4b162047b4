"""The journal of answers: torn files are read as far as they go, and other media never have the same identity."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from videosafety.lmms_eval_tasks.journal import Journal, media_identity

WHOLE = '{"key": "a", "text": "caf\u00e9"}\n'


@pytest.mark.parametrize(
    "torn",
    ['{"key": "b", "text": "caf\u00e9"}'.encode()[:-3], b'{"key": "b", "te', b"\xff\xfe\x00", b"\n", b"\x00" * 50],
    ids=["inside a letter", "inside a word", "not UTF-8", "empty line", "blocks never written"],
)
def test_a_torn_last_line_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "1-1.jsonl").write_bytes(WHOLE.encode() + torn)
    assert Journal(tmp_path).answers == {"a": {"key": "a", "text": "caf\u00e9"}}


def test_answers_come_back_letter_by_letter(tmp_path: Path) -> None:
    entry = {"key": "a", "text": "caf\u00e9 \u4e2d\u2028\ud83d\ude00 \n"}
    entry["text"] = entry["text"].encode("utf-16", "surrogatepass").decode("utf-16")
    journal = Journal(tmp_path)
    journal.write([entry])
    assert journal.file.read_bytes().isascii()
    assert Journal(tmp_path).answers == {"a": entry}


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette(colour)
    return image


def turned(orientation: int) -> Image.Image:
    image = Image.new("RGB", (4, 4))
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (palette((255, 0, 0)), palette((0, 0, 255))),
        (turned(1), turned(6)),
        (Image.new("L", (4, 4)), Image.new("L", (2, 8))),
        (Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")),
    ],
    ids=["another palette", "turned otherwise", "another shape", "another colour"],
)
def test_images_that_look_different_have_another_identity(one: Image.Image, other: Image.Image) -> None:
    assert media_identity(one) != media_identity(other)
    assert media_identity(one) == media_identity(one)
