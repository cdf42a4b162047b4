"""Stages that hold a model: DINOv2 features as fingerprints, and the spans of an alarm model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from stage_cases import asking, config, video_row
from toy_clips import write_clip

from conftest import ROOT
from videosafety.dataset_builder import filter as filtering
from videosafety.dataset_builder import spans
from videosafety.dataset_builder.config import ConfigError, Filter, Spans
from videosafety.dataset_builder.features import BITS, Features
from videosafety.dataset_builder.rows import Bundle, Row, through
from videosafety.lmms_eval_tasks.toy_world import draw, world

R1 = ROOT / "training_recipes" / "toy_world" / "checkpoints" / "r1"


# --- features -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of random weights, with its processor."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    settings = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, initializer_range=0.2)
    Dinov2Model(settings).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    BitImageProcessor(size={"shortest_edge": 56}, crop_size=size).save_pretrained(folder)
    return folder


def bits_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.bitwise_count(a ^ b).sum())


def test_bits_differ_by_the_share_of_the_angle(dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charikar's law, on vectors whose angle is known: 256 bits, so two standard deviations are 16 at most."""
    features = Features(dino)
    tokens: list[torch.Tensor] = []
    monkeypatch.setattr(features, "_model", lambda **_: type("Out", (), {"last_hidden_state": tokens[-1].expand(4, 1, -1)}), raising=True)
    chance = np.random.default_rng(1)
    a, across = np.linalg.qr(chance.standard_normal((64, 2)))[0].T
    frames = np.zeros((4, 56, 56, 3), np.uint8)

    def print_of(vector: np.ndarray) -> np.ndarray:
        tokens.append(torch.tensor(vector, dtype=torch.float32))
        return features.fingerprint(frames)

    for angle in (0.0, 0.3, 1.0, np.pi / 2, np.pi):
        expected = BITS * angle / np.pi
        assert abs(bits_apart(print_of(a), print_of(np.cos(angle) * a + np.sin(angle) * across)) - expected) <= 20


def test_the_same_clip_has_the_same_features_and_another_clip_others(dino: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, filter=Filter(features=dino.name), root=dino.parent)
    stage = filtering.measure(settings)
    rows = []
    for name, seed in (("one", 1), ("two", 2)):
        found = through(Bundle(name, [video_row(write_clip(tmp_path / f"{name}.mp4", seed=seed))]), "filter", stage)
        assert not found.rejected
        rows.append(found.rows[0]["provenance"])
    again = through(Bundle("again", [video_row(tmp_path / "one.mp4")]), "filter", filtering.measure(settings)).rows[0]["provenance"]
    assert again["fingerprint"] == rows[0]["fingerprint"]
    assert again["fingerprint_by"].startswith("dinov2 ")
    one, two = (np.frombuffer(bytes.fromhex(row["fingerprint"]), np.uint8) for row in rows)
    assert bits_apart(one, two) > 0, "how far apart unlike clips lie is for real weights to say"


def test_a_folder_without_weights_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"filter\.features: .* holds no weights that can be loaded"):
        filtering.measure(config(tmp_path, filter=Filter(features=".")))


# --- spans of an alarm model --------------------------------------------------------------------------------------------------------


def shown(file: Path, *clips: str) -> Path:
    """A video that shows toy clips one after the other, each twice: six seconds a clip."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=1, options={"qp": "0", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = draw.SIDE, draw.SIDE, "rgb24"
        for clip in clips:
            for pixels in (*draw.frames(world.Clip.of(clip)), *draw.frames(world.Clip.of(clip))):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file


BALL, BOMB, TREE = "one-blue-ball-still-black", "one-blue-bomb-still-black", "two-green-tree-still-navy"


@pytest.fixture(scope="module")
def alarm() -> spans.Stage:
    """The shipped toy R1, which knows a bomb when it sees one."""
    return spans.spans(config(ROOT, spans=Spans(window=3.0, model=str(R1.relative_to(ROOT)))), asking(""))


def harmful(file: Path, seconds: float) -> Row:
    row = video_row(file)
    return row | {"visual_label": 1, "category": "weapons", "duration": seconds, "provenance": row["provenance"] | {"shot": [0.0, seconds]}}


def test_an_alarm_model_says_when_the_harm_is_shown(alarm: spans.Stage, tmp_path: Path) -> None:
    file = shown(tmp_path / "between.mp4", BALL, BOMB, TREE)
    (row,) = through(Bundle("k", [harmful(file, 18.0)]), "spans", alarm).rows
    (span,) = row["harm_spans"]
    assert 3.0 < span[0] <= 6.0, "windows of three seconds, one and a half apart: one that sees the bomb begins after second 3"
    assert 12.0 <= span[1] < 15.0
    assert re.fullmatch(r"alarm timeline of r1 \([0-9a-f]{8}\)", row["provenance"]["spans_by"])


def test_a_safe_clip_has_no_span_and_the_model_is_not_asked(alarm: spans.Stage, tmp_path: Path) -> None:
    (row,) = through(Bundle("k", [harmful(tmp_path / "missing.mp4", 6.0) | {"visual_label": 0}]), "spans", alarm).rows
    assert row["harm_spans"] == []


def test_where_the_alarm_model_sees_no_harm_the_span_is_the_whole_shot_and_says_so(alarm: spans.Stage, tmp_path: Path) -> None:
    (row,) = through(Bundle("k", [harmful(shown(tmp_path / "safe.mp4", BALL), 6.0)]), "spans", alarm).rows
    assert row["harm_spans"] == [[0.0, 6.0]]
    assert row["provenance"]["spans_by"] == "whole shot"


def test_a_segment_without_a_score_leaves_the_clip_out_with_the_reason(
    alarm: spans.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videosafety.hf_models import timeline

    scored = timeline._scored

    def one_lost(*given: Any) -> list[timeline.Segment]:
        first, *rest = scored(*given)
        return [replace(first, p_visual=None, error="the processor refused it"), *rest]

    monkeypatch.setattr(timeline, "_scored", one_lost)
    found = through(Bundle("k", [harmful(shown(tmp_path / "lost.mp4", BOMB), 6.0)]), "spans", alarm)
    assert not found.rows
    assert "second 0 to 3 has no score (the processor refused it)" in found.rejected[0].reason


def test_a_broken_clip_is_left_out_and_a_folder_without_a_model_is_said_at_once(alarm: spans.Stage, tmp_path: Path) -> None:
    file = tmp_path / "broken.mp4"
    file.write_bytes(b"no video")
    (rejected,) = through(Bundle("k", [harmful(file, 6.0)]), "spans", alarm).rejected
    assert rejected.reason.startswith("no timeline: ")
    assert str(tmp_path) not in rejected.reason
    with pytest.raises(ConfigError, match=r"spans\.model: .*no model that can be loaded"):
        spans.spans(config(tmp_path, spans=Spans(model=".")), asking(""))
