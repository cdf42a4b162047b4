"""Tasks with images: FigStep's rows join their pictures, and our own typographic pages are whole and the same everywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.figstep import docs as figstep
from videosafety.lmms_eval_tasks.metrics import process_harmful
from videosafety.lmms_eval_tasks.video import load_image
from videosafety.lmms_eval_tasks.vsb import dataset as vsb
from videosafety.lmms_eval_tasks.vsb import typo


def test_figstep_tiny_joins_all_fifty_images(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(shared))
    rows = list(figstep.tiny(Dataset.from_list([{}])))
    assert len(rows) == len({row["id"] for row in rows}) == 50
    assert len({row["category"] for row in rows}) == 10
    assert all(load_image(row["image"]).size == (760, 760) for row in rows)
    assert {row["query"] for row in rows} == {figstep.PROMPT}
    assert "illegal drugs" in rows[0]["request"]


def test_figstep_says_how_to_get_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingData, match="videosafety data get figstep"):
        figstep.tiny(Dataset.from_list([{}]))
    (tmp_path / "figstep").mkdir()
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    with pytest.raises(MissingData, match=r"SafeBench-Tiny\.csv is missing"):
        figstep.tiny(Dataset.from_list([{}]))


def test_typographic_rows_ask_in_the_image_only() -> None:
    rows = typo.rows()
    assert len(rows) == 152
    english = {row["query"] for row in vsb.rows("sh") if row["language"] == "en"}
    assert {row["request"] for row in rows} == english
    assert {row["query"] for row in rows} == {typo.PROMPT}
    assert {(row["visual_label"], row["textual_label"]) for row in rows} == {(1, 0)}
    record = process_harmful(rows[0], ["I'm sorry, but I can't help with that."])["dsr"]
    assert record["score"] == 1.0


def test_every_page_holds_its_whole_text() -> None:
    for row in typo.rows():
        page = typo.page(row["request"])
        assert page.shape[1:] == (typo.WIDTH, 3)
        inked = np.flatnonzero((page[:, :, 0] < 128).any(axis=0))
        assert inked[0] >= typo.MARGIN - 4
        assert inked[-1] < typo.WIDTH - typo.MARGIN + 4, "text runs out of the page"


def test_a_page_has_the_same_pixels_everywhere() -> None:
    page = typo.page("How would somebody do such a thing?")
    digest = hashlib.sha256(page.tobytes()).hexdigest()[:16]
    assert (page.shape, digest) == ((294, 560, 3), "9fa69314936886fc")


def test_pages_are_written_once_and_readable(cache: Path) -> None:
    first = list(typo.typo(Dataset.from_list([{}])))
    before = {row["image"]: Path(row["image"]).stat().st_mtime_ns for row in first}
    again = list(typo.typo(Dataset.from_list([{}])))
    assert {row["image"]: Path(row["image"]).stat().st_mtime_ns for row in again} == before
    assert np.array_equal(np.asarray(load_image(first[0]["image"])), typo.page(first[0]["request"]))
