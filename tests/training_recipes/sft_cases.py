"""What the tests of supervised stages share: tiny checkpoints of each family, made once a process, clips, rows, recipes and trainers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import set_seed

from conftest import write_video
from videosafety.hf_models.build import build_alarm
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import sft
from videosafety.training_recipes.recipe import Recipe, load_model
from videosafety.training_recipes.schema import CURRENT, Row, new_row
from videosafety.training_recipes.trainer import SFTTrainer

NAMES = tuple(FAMILIES)
ALL = ["language_model", "alarm_tokens", "alarm_heads"]


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="videosafety-sft-")


def folder(name: str = "videollama3", alarm: bool = True, per_modality: int = 1, init: str = "mean") -> Path:
    """A tiny checkpoint: plain, or with alarm tokens on the very same weights."""
    return _folder(name, alarm, per_modality, init)


@functools.cache
def _folder(name: str, alarm: bool, per_modality: int, init: str) -> Path:
    out = Path(scratch().name) / f"{name}-{alarm}-{per_modality}-{init}"
    if not alarm:
        return build_tiny(out, name, alarm=False)
    return build_alarm(folder(name, alarm=False), out, per_modality=per_modality, init=init)


@functools.cache
def media() -> Path:
    """Clips of unlike length and two images."""
    root = Path(scratch().name) / "media"
    root.mkdir()
    write_video(root / "a.mp4", frames=8, size=(56, 56))
    write_video(root / "b.mp4", frames=16, size=(56, 56))
    for seed, name in enumerate(("i.png", "j.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (56, 84 - 28 * seed, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def row(number: int = 0, **values: Any) -> Row:
    """A sound SFT row, unlabelled, text alone, changed."""
    sound = {"id": str(number), "source": "test", "prompt": f"What is this {number}?", "completion": "A cat." + " More." * (number % 3)}
    return new_row(**sound | {"label_version": CURRENT} | values)


def rows(count: int = 4) -> list[Row]:
    """Rows with and without a clip, answers of unlike length, and unlike numbers of labels of each kind."""
    kinds: list[dict[str, Any]] = [
        {"videos": ["a.mp4"], "visual_label": 1, "textual_label": 0},
        {"textual_label": 1},
        {"videos": ["a.mp4"], "visual_label": 1},
        {"visual_label": 0, "textual_label": 0},
        {"textual_label": 1},
    ]
    return [row(number, **kinds[number % len(kinds)]) for number in range(count)]


def recipe(name: str = "videollama3", **values: Any) -> Recipe:
    """A recipe on a tiny checkpoint."""
    alarm = values.pop("alarm", True)
    sound = {"stage": "at_sft", "model": str(folder(name, alarm)), "data": ["rows.jsonl"], "data_root": str(media()), "fps": 2.0}
    sound |= {"alarm_token_lr": None, "alarm_head_lr": None}  # all parts at the settings' rate
    return Recipe(**sound | {"train": ALL if alarm else ["language_model"]} | values)


def settings(out: Path, **values: Any) -> sft.SFTSettings:
    """Plain steps of gradient descent, so that what a step does is linear in the gradients."""
    sound = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1}
    sound |= {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "num_train_epochs": 1,
        "data_seed": 3,
    }
    return sft.SFTSettings(output_dir=str(out), **sound | values)


def trainer(
    out: Path, what: Recipe | None = None, data: Sequence[Row] = (), held_out: Sequence[Row] | None = None, **values: Any
) -> SFTTrainer:
    """A trainer on a fresh model."""
    what = what or recipe()
    set_seed(3)  # LoRA's factors are drawn before there is a Trainer, as `parse` knows
    model, processor = load_model(what)
    return sft.trainer_of(what, settings(out, **values), model, processor, list(data) or rows(), held_out)


def batch_of(found: SFTTrainer, data: Sequence[Row]) -> dict[str, Any]:
    return dict(found.data_collator(list(data)))  # type: ignore[arg-type]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-5) -> None:
    """The same tensors, up to a share of the largest number in each."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for key, value in expected.items():
        allowed = share * max(float(value.abs().max()), 1e-3)
        assert float((found[key] - value).abs().max()) <= allowed, key
