"""From decoded requests to a processor's tensors: frames given as they were sampled, by the path that evaluation and guard share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from videosafety.lmms_eval_tasks.pipeline import Loaded
from videosafety.lmms_eval_tasks.video import Clip

JITTER = 0.02  # seconds: containers round the time stamps of a constant rate, GIF to hundredths


def model_inputs(processor: Any, batch: list[Loaded]) -> Any:
    """The processor's tensors for a batch, padded on the tokenizer's side.

    Raises:
        ValueError: the processor refuses a row, or rows of this batch cannot share one.
    """
    conversations = [item.request.messages for item in batch]
    images = [item.images for item in batch]
    media: dict[str, Any] = {}
    if any(item.clips for item in batch):
        video_processor = getattr(processor, "video_processor", None)
        if video_processor is None:  # a model for images only sees the frames as images
            conversations = [_frames_as_images(item) for item in batch]
            images = [item.images + [Image.fromarray(f) for clip in item.clips for f in clip.frames] for item in batch]
        else:
            if len(batch) > 1 and "SmolVLM" in type(processor).__name__ and len({len(c.frames) for item in batch for c in item.clips}) > 1:
                # Seen in transformers 5.23: it writes the longest clip's number of frames into every prompt of a batch.
                raise ValueError("SmolVLM's processor takes clips of unlike length one by one only")
            clips = [_long_enough(clip, video_processor) for item in batch for clip in item.clips]
            media["videos"] = [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips]
            media["video_metadata"] = [metadata(clip) for clip in clips]
            media["do_sample_frames"] = False
    if any(images):
        media["images"] = images
    text = [processor.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    return processor(text=text, padding=True, return_tensors="pt", **media)


def metadata(clip: Clip) -> VideoMetadata:
    """What processors compute the frames' times from: index / fps. Where the rate varies, that is right only with indices that count
    milliseconds."""
    indices, fps, total = clip.indices, clip.fps, clip.total
    if any(abs(index / fps - seconds) > JITTER for index, seconds in zip(indices, clip.seconds, strict=True)):
        indices, fps = [round(seconds * 1000) for seconds in clip.seconds], 1000.0
        total = max(round(clip.duration * fps), indices[-1] + 1)
    return VideoMetadata(total_num_frames=total, fps=fps, duration=clip.duration, frames_indices=indices)


def _long_enough(clip: Clip, video_processor: Any) -> Clip:
    """The clip with its last frame repeated until it fills one temporal patch: Qwen3-VL's processor refuses a single frame, Qwen2.5-VL's
    repeats it by itself."""
    missing = (getattr(video_processor, "temporal_patch_size", None) or 1) - len(clip.frames)
    if missing <= 0:
        return clip
    frames = np.concatenate([clip.frames, np.repeat(clip.frames[-1:], missing, axis=0)])
    return replace(
        clip, frames=frames, indices=clip.indices + clip.indices[-1:] * missing, seconds=clip.seconds + clip.seconds[-1:] * missing
    )


def _frames_as_images(item: Loaded) -> list[dict[str, Any]]:
    counts = iter(len(clip.frames) for clip in item.clips)
    messages = []
    for message in item.request.messages:
        content = []
        for part in message["content"]:
            content += [{"type": "image"}] * next(counts) if part["type"] == "video" else [part]
        messages.append({**message, "content": content})
    return messages
