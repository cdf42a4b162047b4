"""Baseline after SEA: text-only safety data made to align the visual path, by features that the model itself takes for harmful videos.

SEA (arXiv 2502.12562) optimises a synthetic embedding, with the model frozen, until the model writes given descriptions of harm from it,
and adds it to the text that it came from. Its code is unpublished; what is ours: the features stand after the projector, which is frozen in
all our stages, and not before it; a description is the request itself, where SEA has another model find a phrase in it; the two questions;
the settings' defaults.

    python -m videosafety.training_recipes.sea --config RECIPE.yaml --make true        # once: writes `embeddings`, on one device
    accelerate launch --config_file training_recipes/accelerate_configs/single.yaml -m videosafety.training_recipes.sea --config RECIPE.yaml
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from videosafety.lmms_eval_tasks.video import Clip, Sampling
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes import sft
from videosafety.training_recipes.collate import UNLABELLED, Encoder, SFTCollator
from videosafety.training_recipes.data import DataError
from videosafety.training_recipes.dpo import with_features
from videosafety.training_recipes.recipe import Recipe
from videosafety.training_recipes.schema import Row, new_row
from videosafety.training_recipes.shared_video import Features, Seen, see
from videosafety.training_recipes.trainer import SFTTrainer

log = logging.getLogger(__name__)

CLIP = "synthetic"  # stands where a row has the path of a video
QUESTIONS = {"What does this video show?": "It shows this: {prompt}", "Is what this video shows harmful?": "Yes."}  # ours


@dataclass
class SEASettings(sft.SFTSettings):
    """Those of supervised stages, and the synthetic embeddings.

    Raises:
        ValueError: a number that cannot be.
    """

    embeddings: str = "sea.safetensors"  # the file of the features, by the rows' ids
    make: bool = False  # write it, and train nothing
    synthetic_frames: int = 4  # of the clip that they stand for
    synthetic_side: int = 224  # pixels; of its square frames
    synthetic_steps: int = 100  # of Adam for each row
    synthetic_lr: float = 0.05  # in units of the standard deviation of features

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("synthetic_frames", "synthetic_side", "synthetic_steps", "synthetic_lr"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be above 0, got {getattr(self, key)}")


class Noise:
    """`Frames` of a clip of noise, whatever the path: nothing in it is alike, so that no token of it is compressed away."""

    def __init__(self, frames: int, side: int) -> None:
        self.sampling = Sampling(1.0, frames)
        pixels = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
        self.clip = Clip(pixels, list(range(frames)), [float(n) for n in range(frames)], frames, 1.0, float(frames))

    def get(self, path: str) -> Clip:
        return self.clip


def with_video(row: Row, **values: Any) -> Row:
    """The row with the synthetic clip before its prompt."""
    return {**row, "id": f"{row['id']}-{CLIP}", "videos": [CLIP], **values}  # type: ignore[typeddict-item]


def harmful(rows: Sequence[Row]) -> list[Row]:
    """The rows that get features: those whose words are harmful.

    Raises:
        DataError: rows with media, or none that is labelled harmful.
    """
    if media := [row for row in rows if row["videos"] or row["images"]]:
        raise DataError(f"videosafety: {len(media)} row(s) have media, {media[0]['id']} for one; SEA trains on words alone")
    if not (found := [row for row in rows if row["textual_label"] == 1]):
        raise DataError("videosafety: no row has textual_label 1, for which features are made; label the rows")
    return found


def make(model: Any, encoder: Encoder, rows: Sequence[Row], settings: SEASettings) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Features (tokens, hidden), float32, for each row by its id, and the mean loss of all rows before and after.

    They start as noise with the mean and standard deviation of the features that the tower gives a clip of noise, and descend the
    cross-entropy of the answers to QUESTIONS. Rows share a batch but nothing else.
    """
    seen = see(model, {key: value.to(model.device) for key, value in encoder.prompts([with_video(rows[0])]).items()})
    (shape,) = {features.pooled.shape for features in seen.values()}
    centre, spread = (float(of(next(iter(seen.values())).pooled.float())) for of in (torch.mean, torch.std))
    noise = torch.Generator().manual_seed(settings.seed)
    found: dict[str, torch.Tensor] = {}
    losses = torch.zeros(2)
    size = settings.per_device_train_batch_size
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        free = torch.stack([torch.randn(shape, generator=noise) for _ in batch]).to(model.device).requires_grad_(True)
        adam = torch.optim.Adam([free], lr=settings.synthetic_lr)
        asked = [with_video(new_row(id=row["id"], source=row["source"], prompt=question)) for question in QUESTIONS for row in batch]
        inputs, labels = encoder.pairs(asked, [answer.format(prompt=row["prompt"]) for answer in QUESTIONS.values() for row in batch])
        inputs, labels = {key: value.to(model.device) for key, value in inputs.items()}, labels.to(model.device)
        for step in range(settings.synthetic_steps + 1):
            features = [in_place_of(seen, centre + spread * row) for row in free]
            loss = _losses(model, with_features(inputs, features * len(QUESTIONS)), labels).sum() / len(QUESTIONS)
            if step in (0, settings.synthetic_steps):
                losses[int(step > 0)] += loss.detach().cpu()
            if step < settings.synthetic_steps:
                (free.grad,) = torch.autograd.grad(loss, free)
                adam.step()
        found |= {row["id"]: value for row, value in zip(batch, (centre + spread * free.detach()).cpu(), strict=True)}
        log.info("%d of %d rows", len(found), len(rows))
    return found, (losses / len(rows)).tolist()


def _losses(model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """(rows,) mean cross-entropy of each row's answer."""
    states = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    kept = targets != UNLABELLED
    found = functional.cross_entropy(model.get_output_embeddings()(states[kept]).float(), targets[kept], reduction="none")
    sums = found.new_zeros(len(labels)).index_add(0, kept.nonzero()[:, 0], found)
    return sums / kept.sum(-1)


def in_place_of(seen: Seen, values: torch.Tensor) -> Seen:
    """`values` (tokens, hidden) as the features of the clip that `seen` is of. Deeper layers (Qwen3-VL) get nothing: zeros."""
    return {
        modality: Features(values, tuple(torch.zeros_like(values) for _ in features.deepstack), features.listed)
        for modality, features in seen.items()
    }


class SEACollator:
    """Batches of `SFTCollator` in which rows with the synthetic clip have the features of `file` in place of its pixels."""

    def __init__(self, collator: SFTCollator, seen: Seen, file: Path) -> None:
        self.collator, self.seen, self.file = collator, seen, file

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = self.collator(rows)
        names = [row["id"].removesuffix(f"-{CLIP}") for row in rows if row["videos"]]
        if not names:
            return batch
        with safe_open(self.file, "pt") as stored:
            return with_features(batch, [in_place_of(self.seen, stored.get_tensor(name).float()) for name in names])


def check(file: Path, rows: Sequence[Row], recipe: Recipe, shape: Sequence[int]) -> None:
    """Refuse (ValueError) a file of features that is not there, or of another model, clip or rows."""
    mend = "make it with --make true, in a process of its own"
    if not file.is_file():
        raise ValueError(f"embeddings {file} is not there: {mend}")
    with safe_open(file, "pt") as stored:
        facts, names = stored.metadata() or {}, set(stored.keys())
        if missing := [row["id"] for row in rows if row["id"] not in names]:
            raise ValueError(f"embeddings {file} has nothing for {len(missing)} row(s), {missing[0]} for one: {mend}")
        if facts.get("model") != recipe.model or list(stored.get_slice(rows[0]["id"]).get_shape()) != list(shape):
            raise ValueError(f"embeddings {file} is for model {facts.get('model')} or for a clip of another size: {mend}")


def trainer_of(recipe: Recipe, settings: SEASettings, model: Any, processor: Any, rows: Sequence[Row]) -> tuple[SFTTrainer, list[Row]]:
    """The trainer of a recipe, ready to train, and its rows: those that got features once with them and once in words, the rest in words.

    Raises:
        ValueError: as `check`.
    """
    asked, file = harmful(rows), Path(settings.embeddings)
    encoder = noise_encoder(recipe, settings, processor)
    with torch.no_grad():
        seen = see(model, encoder.prompts([with_video(asked[0])]))
    (shape,) = {features.pooled.shape for features in seen.values()}
    check(file, asked, recipe, shape)
    both = [*map(with_video, asked), *rows]
    trainer = sft.trainer_of(recipe, settings, model, processor, both)
    trainer.data_collator = SEACollator(SFTCollator(encoder), seen, file)  # type: ignore[assignment]
    return trainer, both


def noise_encoder(recipe: Recipe, settings: SEASettings, processor: Any) -> Encoder:
    """Encodes rows whose videos are the clip of noise."""
    return Encoder(processor, recipe.data_root, Noise(settings.synthetic_frames, settings.synthetic_side))


def main(argv: Sequence[str] | None = None) -> None:
    """Make synthetic embeddings (`make`), or train by a recipe of stage sft on words and embeddings, or show what that would do.

    Raises:
        ValueError: the recipe or its embeddings, or DataError: its rows; the message says what to mend.
    """
    recipe, settings = recipes.parse(argv, SEASettings)
    if recipe.stage != "sft" or set(recipe.train) & {"vision", "projector"} or recipe.eval_data:
        raise ValueError("SEA trains in stage sft, on data alone, with vision and projector frozen")
    rows, _ = recipes.load_rows(recipe)
    asked = harmful(rows)  # before gigabytes are loaded for nothing
    model, processor = recipes.load_model(replace(recipe, train=[], lora_rank=0) if settings.make else recipe)
    if settings.make:
        file, encoder = Path(settings.embeddings), noise_encoder(recipe, settings, processor)
        features, (before, after) = make(model.to(settings.device).eval(), encoder, asked, settings)
        facts = {"model": recipe.model, "steps": str(settings.synthetic_steps), "loss_before": str(before), "loss_after": str(after)}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.bfloat16() for name, value in features.items()}, file, metadata=facts)
        print(json.dumps({"embeddings": str(file), "rows": len(features), "loss_before": before, "loss_after": after}))
        return
    trainer, rows = trainer_of(recipe, settings, model, processor, rows)
    if recipe.dry_run:
        recipes.dry_run(recipe, settings, model, rows, lambda sample: sft.probe(trainer, sample))
        return
    recipes.train(trainer)
    recipes.finish(trainer, recipe)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
