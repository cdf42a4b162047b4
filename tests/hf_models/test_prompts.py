"""Tensors on their way into a model: positions keep their precision, and a visual counts only where the visual head sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alarm_cases import NAMES, encode, image, model, processor, user, video

from videosafety.hf_models.calibrate import Calibration, Threshold
from videosafety.hf_models.guarded import generate_guarded
from videosafety.hf_models.prompts import on_model, shown

ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}


@pytest.mark.parametrize(
    ("chat", "wanted"),
    [
        pytest.param([user(video(), "What?")], True, id="video"),
        pytest.param([user(image(), "What?")], True, id="image"),
        pytest.param([user("What?")], False, id="text"),
        pytest.param([user("Hello"), ANSWER, user(video(), "What?")], False, id="video in the second turn"),
        pytest.param([user(image(), "Hello"), ANSWER, user(image(1), "What?")], True, id="in both turns"),
    ],
)
@pytest.mark.parametrize("per_modality", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_only_what_stands_before_the_visual_token_is_shown(name: str, per_modality: int, chat: list[dict[str, Any]], wanted: bool) -> None:
    ids = encode(name, chat, [user("A text prompt beside it, so that there is padding or there is not.")], per_modality=per_modality)
    assert shown(model(name, per_modality=per_modality).config, ids["input_ids"]) == [wanted, False]


def test_of_a_video_that_the_visual_head_never_saw_there_is_no_probability() -> None:
    """Two clips in a later turn gave one and the same p_visual, and the guard answered or refused by it."""
    net = model("videollama3")
    calibration = Calibration(Threshold(0.0), Threshold(1.0))  # any visual probability would raise an alarm
    for seed in (0, 1):
        inputs = encode("videollama3", [user("Hello"), ANSWER, user(video(seed), "What is it?")])
        (found,) = generate_guarded(net, processor("videollama3"), inputs, calibration, max_new_tokens=2)
        assert (found.visual, found.flagged) == (None, False)
        assert found.textual is not None


def test_pixels_are_cast_and_what_positions_are_made_of_is_not() -> None:
    seconds = torch.tensor([1.0 + 1 / 300])
    inputs = {"pixel_values": torch.rand(2, 3), "pixel_values_videos": torch.rand(2, 3), "second_per_grid_ts": seconds}
    given = inputs | {"input_ids": torch.tensor([[1, 2]]), "mm_token_type_ids": None}
    moved = on_model(given, model("qwen2_5_vl").to(torch.bfloat16))
    assert [moved[name].dtype for name in ("pixel_values", "pixel_values_videos")] == [torch.bfloat16] * 2
    assert moved["second_per_grid_ts"].dtype == torch.float32
    assert moved["second_per_grid_ts"].item() == seconds.item()
    assert (moved["input_ids"].dtype, moved["mm_token_type_ids"]) == (torch.int64, None)


def test_a_long_video_has_the_same_positions_in_bfloat16() -> None:
    """400 s in 90 patches of time: with seconds rounded to bfloat16 more than half of them moved, by up to 6."""
    net = model("qwen2_5_vl")
    inputs = encode("qwen2_5_vl", [user(video(frames=180), "What?")])
    grid = inputs["video_grid_thw"]
    inputs["second_per_grid_ts"] = torch.tensor([400 / int(grid[0, 0])])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        moved = on_model(inputs, net.to(dtype))
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
        found.append(net.model.get_rope_index(**{name: moved[name] for name in names if name in moved})[0])
    assert torch.equal(*found)
