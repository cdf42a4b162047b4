"""What the tests of GRPO share: tiny models, two clips, rows, and a trainer of them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks.video import FrameCache, Sampling
from videosafety.training_recipes import grpo, recipe
from videosafety.training_recipes.collate import Encoder
from videosafety.training_recipes.grpo_trainer import VideoGRPOTrainer
from videosafety.training_recipes.schema import Row, new_row

FAMILIES_HERE = tuple(FAMILIES)
VIDEOS = (["a.mp4"], ["b.mp4"], [], ["a.mp4"])
LABELS = ((1, 1), (0, 0), (0, 1), (1, 0))


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="videosafety-grpo-")


def checkpoint(family: str = "videollama3") -> Path:
    """A tiny alarm checkpoint."""
    folder = Path(scratch().name) / family
    return folder if folder.exists() else build_tiny(folder, family)


@functools.cache
def media() -> Path:
    """A folder with a.mp4 (3 s) and b.mp4 (2 s) of noise, and still.mp4 (3 s) of one picture, of 56 × 56 pixels."""
    folder = Path(scratch().name) / "media"
    folder.mkdir()
    for number, (name, seconds) in enumerate({"a.mp4": 3, "b.mp4": 2, "still.mp4": 3}.items()):
        pictures = np.random.default_rng(number).integers(0, 255, (seconds, 56, 56, 3), dtype=np.uint8)
        if name == "still.mp4":
            pictures[:] = 128
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=1)
            stream.width = stream.height = 56
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder


def rows(count: int = 2, *, videos: Sequence[list[str]] = VIDEOS) -> list[Row]:
    return [
        new_row(
            id=f"r{n}",
            source="made",
            prompt=f"{n}: what happens" + " in this video" * (n % 3) + "?",
            reference="The person walks along the street.",
            problem_type="free-form-and-choice",
            videos=list(videos[n % len(videos)]),
            visual_label=LABELS[n % 4][0],
            textual_label=LABELS[n % 4][1],
            label_version="1",
        )
        for n in range(count)
    ]


def by_length(prompts: Any, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
    """A reward that differs between answers: the share of even tokens."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def encoder(processor: Any) -> Encoder:
    frames = FrameCache(Path(scratch().name) / "frames", Sampling(1.0, 4, None))
    return Encoder(processor, media(), frames)


def settings(out: Path, **more: Any) -> grpo.Settings:
    given: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 1,
        "num_generations": 3,
        "per_device_train_batch_size": 6,
        "max_completion_length": 5,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return grpo.Settings(**given | more)


def trainer(
    out: Path,
    data: Sequence[Row] | None = None,
    *,
    family: str = "videollama3",
    reward: Callable[..., Any] = by_length,
    train: Sequence[str] = ("language_model",),
    recipe_more: dict[str, Any] | None = None,
    asks: dict[str, str] | None = None,
    **more: Any,
) -> VideoGRPOTrainer:
    """asks: `think` and `label`; none by default, which makes prompts a third as long."""
    made = recipe.Recipe(stage="grpo", model=str(checkpoint(family)), data=["rows.jsonl"], train=list(train), **recipe_more or {})
    args = settings(out, **more)
    model, processor = recipe.load_model(made)
    reference = None
    if args.beta and not made.lora_rank:
        reference, _ = recipe.load_model(recipe.Recipe("grpo", str(checkpoint(family)), ["rows.jsonl"], []))
    asks = {"think": "", "label": ""} if asks is None else asks
    data = rows() if data is None else data
    return VideoGRPOTrainer(model, reward, args, data, encoder(processor), made, reference=reference, **asks)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}
