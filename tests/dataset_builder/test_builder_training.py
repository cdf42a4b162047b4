"""Training rows of a built set: they carry the labels that the set has now, and each says who made it from what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_server import model_server
from toy_clips import project, rows

from videosafety.dataset_builder.build import build
from videosafety.dataset_builder.config import load
from videosafety.dataset_builder.review import Decisions, checked, read_queue


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """The config of a set with a train split and training rows, and what builds it."""
    with model_server() as model:
        more = {"splits": {"test": 0.5, "train": 0.5}, "training": {"reason": "writer", "reject": "other"}}
        file = project(tmp_path, model.url, clips=4, **more)
        build(load(file), quiet=True)
        yield file


def lines(file: Path, name: str) -> dict[str, dict[str, Any]]:
    text = (file.parent / "out" / "train" / f"{name}.jsonl").read_text(encoding="utf-8")
    return {row["id"]: row for row in map(json.loads, text.split("\n")[:-1])}


def test_a_fix_that_changes_reaches_the_training_rows(made: Path) -> None:
    folder = made.parent / "out" / "review"
    wrong = next(row for row in rows(made.parent / "out", "train") if row["cell"] == "hs")  # declined in both of its cells
    for fix in ({"category": "theft"}, {"textual_label": 1}, {"textual_label": 1, "category": "privacy"}):
        body = {"id": wrong["id"], "action": "fix", "reviewer": "ann", "fix": fix}
        Decisions(folder).add(checked(body, read_queue(folder), "test"))
        build(load(made), quiet=True)
        (row,) = [row for row in rows(made.parent / "out", "train") if row["id"] == wrong["id"]]
        assert {key: row[key] for key in fix} == fix
        for kind in ("sft", "grpo"):
            trained = lines(made, kind)[f"{wrong['id']}-{kind}"]
            assert {key: trained[key] for key in fix} == fix, kind


def test_every_training_row_says_who_made_it_from_what(made: Path) -> None:
    trained = {name: row for kind in ("sft", "grpo", "dpo") for name, row in lines(made, kind).items()}
    told = lines(made, "provenance")
    assert set(told) == set(trained)
    there = {row["id"] for row in rows(made.parent / "out", "train")}
    for name, made_by in told.items():
        assert made_by["row"] in there
        assert name.startswith(made_by["row"])
        assert made_by["reason"]["model"] == "writer-1@abc"
        assert (made_by["reject"] == {"model": "judge-2"}) is name.endswith("-dpo")
        assert made_by["judge"].startswith("offline@")
        assert all(made_by[key] for key in ("policy", "clip_sha256", "config", "builder", "versions"))
        assert made_by["reason"]["prompt"]
    assert "train/provenance.jsonl" in (made.parent / "out" / "vsb" / "README.md").read_text(encoding="utf-8")
    assert str(made.parent) not in (made.parent / "out" / "train" / "provenance.jsonl").read_text(encoding="utf-8")
