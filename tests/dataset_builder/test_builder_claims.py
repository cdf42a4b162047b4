"""What a built set claims of itself: how far likeness is found, which weights placed the harm, over how many clips judges agree."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_server import model_server
from stage_cases import asking, config
from toy_clips import project

from conftest import ROOT
from videosafety.dataset_builder import build as building
from videosafety.dataset_builder import filter as filtering
from videosafety.dataset_builder import spans, split
from videosafety.dataset_builder.config import Filter, Spans, load

R1 = ROOT / "training_recipes" / "toy_world" / "checkpoints" / "r1"


@pytest.mark.parametrize("bits", [0, 15, 24, 32, 48])
def test_the_share_of_pairs_that_the_card_says_is_the_share_that_is_found(bits: int) -> None:
    chance, pairs = np.random.default_rng(bits), 1500
    first = chance.integers(0, 2, (pairs, 256), np.uint8)
    flipped = np.argsort(chance.random((pairs, 256)), axis=1)[:, :bits]
    second = first.copy()
    np.put_along_axis(second, flipped, 1 - np.take_along_axis(first, flipped, 1), 1)
    leader = filtering.clusters(np.packbits(np.vstack([first, second]), axis=1), bits, split.BANDS)
    found = float(np.mean(leader[:pairs] == leader[pairs:]))
    assert found == pytest.approx(split.recall(bits), abs=0.04), "three standard errors of 1,500 pairs"


def test_the_recall_at_the_limits_of_the_bits() -> None:
    assert [round(split.recall(bits), 2) for bits in (0, 15, 24, 48, 256, 999)] == [1.0, 1.0, 0.99, 0.43, 0.0, 0.0]


@pytest.mark.parametrize("changed", ["features", "alarm"])
def test_other_weights_in_the_same_folder_are_another_key(tmp_path: Path, changed: str) -> None:
    weights = {name: tmp_path / name / "model.safetensors" for name in ("features", "alarm")}
    for file in weights.values():
        file.parent.mkdir()
        file.write_bytes(b"old")
    settings = config(tmp_path, filter=Filter(features="features"), spans=Spans(model="alarm"))
    before = [phase.key for phase in building.phases(settings)]
    assert [phase.key for phase in building.phases(settings)] == before
    weights[changed].write_bytes(b"new")
    os.utime(weights[changed], (1, 1))
    after = [phase.key for phase in building.phases(settings)]
    assert [a != b for a, b in zip(before, after, strict=True)] == [changed == "features", True, True]


def test_provenance_tells_one_alarm_model_from_another_in_the_same_folder(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(R1, tmp_path / "r1"))
    settings = config(tmp_path, spans=Spans(model="r1"))

    def name() -> Any:
        spans.spans(settings, asking(""))  # it can be loaded
        return spans._Timeline(folder, settings).name

    first = name()
    assert name() == first
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    key = next(iter(state))
    save_file(state | {key: state[key] * 0.5}, folder / "model.safetensors", metadata={"format": "pt"})
    assert name() != first
    assert name().startswith("alarm timeline of r1 (")


def test_the_card_gives_every_agreement_its_n_and_likeness_its_recall(tmp_path: Path) -> None:
    with model_server() as model:
        building.build(load(project(tmp_path, model.url, clips=4)), quiet=True)
    card = (tmp_path / "out" / "vsb" / "README.md").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "out" / "stats.json").read_text(encoding="utf-8"))
    assert figures["agreement"]["kappa"] == {"judge-1+2frames / judge-2+0frames": {"kappa": 1.0, "n": 4}}
    assert "| Cohen's κ, judge-1+2frames / judge-2+0frames | 1.000 | 4 |" in card
    assert "| |" not in card, "no column is empty"
    assert "99.1 % of pairs that differ in 24" in card
    assert "42.8 % of those that differ in 48" in card
    assert "(n = 4)" in (tmp_path / "out" / "stats.html").read_text(encoding="utf-8")
