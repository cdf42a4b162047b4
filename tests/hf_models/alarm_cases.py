"""What the tests of alarm models share: each family's tiny checkpoints, made once a process, and prompts with real media."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from videosafety.hf_models.alarm_core import alarm_strings
from videosafety.hf_models.build import build_alarm
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import build_tiny

NAMES = tuple(FAMILIES)
LAST_VISUAL = {  # what the visual alarm tokens stand behind, letter by letter
    "videollama3": ("<|image_pad|>", "<|video_pad|>"),
    "qwen2_5_vl": ("<|vision_end|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_end|>", "<|vision_end|><|vision_end|>"),
    "llava_onevision": ("<image>\n", "<video>\n"),
    "smolvlm": ("<fake_token_around_image>", "<fake_token_around_image>\n\n"),
    "internvl": ("</img>\n", "</img>\n"),
}


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="videosafety-alarm-")


def folder(name: str, alarm: bool = True, per_modality: int = 1) -> Path:
    """A tiny checkpoint of the family: plain, or with alarm tokens on the very same weights."""
    return _folder(name, alarm, per_modality)


@functools.cache
def _folder(name: str, alarm: bool, per_modality: int) -> Path:
    out = Path(scratch().name) / f"{name}-{alarm}-{per_modality}"
    if not alarm:
        return build_tiny(out, name, alarm=False)
    return build_alarm(folder(name, alarm=False), out, per_modality=per_modality)


@functools.cache
def _loaded(name: str, alarm: bool, per_modality: int) -> Any:
    cls = FAMILIES[name].model if alarm else FAMILIES[name].base_model
    return cls.from_pretrained(folder(name, alarm, per_modality)).eval()


def model(name: str, alarm: bool = True, per_modality: int = 1) -> Any:
    """A model of the caller's own, to change as it likes."""
    return copy.deepcopy(_loaded(name, alarm, per_modality))


@functools.cache
def processor(name: str, alarm: bool = True, per_modality: int = 1) -> Any:
    return AutoProcessor.from_pretrained(folder(name, alarm, per_modality), trust_remote_code=alarm)


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8))


def video(seed: int = 0, frames: int = 4, still: bool = False) -> torch.Tensor:
    """Frames (T, C, H, W); a still one is what VideoLlama3's token compression works on."""
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1 if still else frames, 3, 56, 56), dtype=np.uint8))
    return pixels.repeat(frames if still else 1, 1, 1, 1)


def user(*parts: Any) -> dict[str, Any]:
    """A user turn of texts, pictures and clips."""
    return {"role": "user", "content": [_part(part) for part in parts]}


def _part(part: Any) -> dict[str, Any]:
    kind = "text" if isinstance(part, str) else "image" if isinstance(part, Image.Image) else "video"
    return {"type": kind, kind: part}


def encode(name: str, *chats: list[dict[str, Any]], alarm: bool = True, per_modality: int = 1, **options: Any) -> dict[str, Any]:
    """Model inputs of a batch of conversations, padded on the left."""
    found = processor(name, alarm, per_modality)
    found.tokenizer.padding_side = "left"
    settings = {"padding": True, "do_sample_frames": False} | options.pop("settings", {})
    return dict(
        found.apply_chat_template(
            list(chats),
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=settings,
            **options,
        )
    )


def mixed(name: str) -> list[list[dict[str, Any]]]:
    """Prompts of unequal length and content that the family's processor takes in one batch."""
    chats = [
        [user(video(1), "What happens in this video?")],
        [user("Is it safe?")],
        [user(video(2), "And then? Is it harmful or safe?")],
    ]
    # SmolVLM's processor keeps the pixels of images and of videos under one name: the second overwrites the first.
    return chats if name == "smolvlm" else [*chats, [user(image(3), "What is it?")]]


def spot(ids: torch.Tensor, name: str, per_modality: int = 1) -> tuple[list[list[int]], list[list[int]]]:
    """For each row the places of its visual and of its textual alarm tokens."""
    tokenizer = processor(name, True, per_modality).tokenizer
    kinds = [tokenizer.convert_tokens_to_ids(strings) for strings in alarm_strings(per_modality)]
    visual, textual = ([torch.isin(row, torch.tensor(kind)).nonzero().flatten().tolist() for row in ids] for kind in kinds)
    return visual, textual
