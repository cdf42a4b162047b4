"""From clips to a processor's tensors: the prompt says when each frame is on screen, whatever the rate."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from conftest import write_video
from videosafety.hf_models.tiny import tiny_parts
from videosafety.lmms_eval_tasks import inputs
from videosafety.lmms_eval_tasks.inputs import metadata, model_inputs
from videosafety.lmms_eval_tasks.pipeline import Loaded, Request
from videosafety.lmms_eval_tasks.video import Clip, Sampling, decode

FAMILIES = ("videollama3", "qwen2_5_vl", "qwen3_vl", "smolvlm")


def uneven(path: Path, milliseconds: list[int]) -> Path:
    """A video with a frame at each of these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 64, 64, "yuv420p", Fraction(1, 1000)
        for stamp in milliseconds:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), stamp % 251, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


SPARSE_THEN_DENSE = [*range(0, 9000, 1000), *range(9000, 9900, 10)]


def tensors(family: str, clip: Clip) -> Any:
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}
    _, processor = tiny_parts(family)
    return processor, model_inputs(processor, [Loaded(Request(0, "0", [message], ["0"], [], {}), [clip])])


@pytest.mark.parametrize(
    ("family", "pattern", "told"),
    [
        ("videollama3", r"Time ([\d.]+)s", [float(n) for n in range(10)]),
        ("qwen3_vl", r"<([\d.]+) seconds>", [0.5, 2.5, 4.5, 6.5, 8.5]),  # the middle of each pair
        ("smolvlm", r"Frame from 00:(\d\d)", [float(n) for n in range(10)]),
    ],
)
def test_the_prompt_tells_the_true_times_at_a_varying_rate(tmp_path: Path, family: str, pattern: str, told: list[float]) -> None:
    clip = decode(uneven(tmp_path / "clip.mp4", SPARSE_THEN_DENSE), Sampling())
    assert clip.seconds == pytest.approx(list(range(10)))
    processor, found = tensors(family, clip)
    text = processor.tokenizer.decode(found["input_ids"][0])
    assert [float(t) for t in re.findall(pattern, text)] == pytest.approx(told)


def test_the_rate_of_the_sampled_frames_stays_what_it_is(tmp_path: Path) -> None:
    clip = decode(uneven(tmp_path / "clip.mp4", SPARSE_THEN_DENSE), Sampling())
    _, found = tensors("qwen2_5_vl", clip)
    assert float(found["second_per_grid_ts"][0]) == pytest.approx(2 * clip.duration / 10, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "fps"), [("clip.mp4", 8), ("clip.mkv", 30), ("clip.ts", 25)])
def test_nothing_changes_at_a_constant_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str, fps: int) -> None:
    clip = decode(write_video(tmp_path / name, frames=4 * fps, fps=fps, size=(64, 64)), Sampling(fps=1.5))
    told = metadata(clip)
    assert (told.frames_indices, told.fps, told.total_num_frames) == (clip.indices, clip.fps, clip.total)
    _, found = tensors(family, clip)
    monkeypatch.setattr(inputs, "JITTER", float("inf"))
    _, before = tensors(family, clip)
    assert found.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(found[k]), torch.as_tensor(before[k])) for k in found)


def test_a_frame_repeated_at_the_end_keeps_its_time() -> None:
    clip = Clip(np.zeros((3, 8, 8, 3), np.uint8), [0, 90, 90], [0.0, 1.0, 1.0], 100, 10.0, 1.1)
    told = metadata(clip)
    assert told.timestamps == pytest.approx(clip.seconds)
    assert told.total_num_frames == 1100
