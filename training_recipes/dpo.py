"""Stage dpo: preferences with video (SafeVid-350K, SPA-VL) on TRL's DPOTrainer, which by itself cannot show a video to a model.

TRL 1.16 hands only images to the processor, so a prompt with a video raises. Here the collator makes the batch, by the path that all
stages and evaluation share, and everything after it is TRL's own: its losses, its metrics, its reference.

    accelerate launch --config_file training_recipes/accelerate_configs/single.yaml -m videosafety.training_recipes.dpo --config RECIPE.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOConfig, DPOTrainer

from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes.collate import UNLABELLED, Encoder, append
from videosafety.training_recipes.data import DataError
from videosafety.training_recipes.recipe import ParamGroups, Recipe
from videosafety.training_recipes.run import beside
from videosafety.training_recipes.schema import Row
from videosafety.training_recipes.shared_video import Seen, join, learns, see


@dataclass
class DPOSettings(DPOConfig):
    """TRL's DPOConfig without truncation: a cut prompt has fewer places for visual tokens than the video has features."""

    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None:
            raise ValueError(f"max_length must be null, got {self.max_length}: rows are never cut; lower max_frames or max_pixels instead")


class PreferenceCollator:
    """Rows with chosen and rejected to the batch of `VideoDPOTrainer`: ids, mask and token types of (2·rows, length), the chosen answers
    first, `completion_mask`, 1 where an answer or what closes it stands, and the visual tensors of the rows, once for both answers.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        answers = [self._answer(row, key) for key in ("chosen", "rejected") for row in rows]
        prompts = self.encoder.prompts(rows)
        texts = {key: twice(value) if _along(value, prompts) else value for key, value in prompts.items()}
        inputs, labels = append(texts, answers, pad=self.encoder.tokenizer.pad_token_id)
        return {**inputs, "completion_mask": (labels != UNLABELLED).long()}

    def _answer(self, row: Row, key: str) -> list[int]:
        try:
            return self.encoder.answer(str(row[key]))  # type: ignore[literal-required]
        except ValueError as error:
            raise DataError(f"videosafety: row {row['id']} of {row['source']}: {key}: {error}; take it out of the data") from error


def twice(value: Any) -> Any:
    """A processor's tensor for the rows, and for the rows again. Samples, media and patches all lie along its first dimension, in order."""
    return torch.cat([value, value]) if torch.is_tensor(value) else [*value, *value]


def with_features(inputs: Mapping[str, Any], prompts: Iterable[Seen]) -> dict[str, Any]:
    """A model's inputs with the features of these prompts, in order, in place of pixels. Grids stay: they say where features stand."""
    done = ("pixel_values", "pixel_values_videos", "pixel_attention_mask", "image_compression_mask", "video_compression_mask")
    return {key: value for key, value in inputs.items() if key not in done} | join(prompts)


def _along(value: Any, inputs: Mapping[str, Any]) -> bool:
    """Is it a tensor with a number for each token: ids, mask, token types?"""
    return torch.is_tensor(value) and value.shape == inputs["input_ids"].shape


class VideoDPOTrainer(ParamGroups, DPOTrainer):
    """DPOTrainer on rows of our schema.

    The reference is the start checkpoint: loaded a second time, or, with LoRA, the model itself with its adapter off (alarm tokens that
    learn go back to what they were too).

    Args:
        model: of `recipe.load_model`. recipe: what made it. rows: to train on. held_out: to evaluate on, or None.
    """

    def __init__(
        self, model: Any, recipe: Recipe, args: DPOSettings, processor: Any, rows: Sequence[Row], held_out: Sequence[Row] | None = None
    ) -> None:
        super().__init__(
            model=model,
            ref_model=None if recipe.lora_rank else reference(recipe),
            args=args,
            data_collator=PreferenceCollator(recipes.encoder(recipe, processor)),
            train_dataset=Dataset.from_list(list(rows)),  # its column `images` keeps TRL from tokenising rows itself
            eval_dataset=None if held_out is None else Dataset.from_list(list(held_out)),
            processing_class=processor,
            recipe=recipe,
        )
        if recipe.lora_rank:  # TRL made a second adapter of the fresh one, for a reference; off is the same, and is not saved
            wrapped: Any = self.model
            wrapped.delete_adapter("ref")
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()  # a tower in shards runs inside the model's forward only
        self.shares = not (sharded or learns(self.model))

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's, on inputs with visuals for both answers: a tower that is frozen runs once for both answers, policy and reference."""
        return super()._compute_loss(model, self.with_visuals(inputs), return_outputs)

    def with_visuals(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The collator's batch as policy and reference take it, (2·rows, …) throughout, with features in place of pixels where shared."""
        texts = {key: value for key, value in inputs.items() if _along(value, inputs)}
        media = {key: value for key, value in inputs.items() if key not in texts}
        both = texts | {key: twice(value) for key, value in media.items()}
        if not self.shares or not media:
            return both
        with torch.no_grad():
            seen = see(self.model, media)
        return with_features(both, [seen, seen])


def reference(recipe: Recipe) -> Any:
    """The start checkpoint once more, frozen."""
    return recipes.load_model(replace(recipe, train=[]))[0].eval()


def probe(trainer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """For `dry_run`: one batch through policy and reference."""
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    return {"tokens": batch["input_ids"].numel(), "loss": float(loss)} | beside(trainer.ref_model)


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a recipe of stage dpo, or show what it would do.

    Raises:
        ValueError: the recipe, or DataError: its rows; the message says what to mend.
    """
    recipe, settings = recipes.parse(argv, DPOSettings)
    if recipe.stage != "dpo":
        raise ValueError(f"stage is {recipe.stage}, and this script trains dpo")
    rows, held_out = recipes.load_rows(recipe)
    set_seed(settings.seed)  # LoRA starts from random numbers
    model, processor = recipes.load_model(recipe)
    trainer = VideoDPOTrainer(model, recipe, settings, processor, rows, held_out)
    if recipe.dry_run:
        recipes.dry_run(recipe, settings, trainer.model, rows, lambda sample: probe(trainer, sample))
        return
    recipes.train(trainer)
    recipes.finish(trainer, recipe)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
