"""Stages sft and at_sft: answers alone (warm-up, cold start, plain baselines), or answers and alarm labels.

accelerate launch --config_file training_recipes/accelerate_configs/single.yaml -m videosafety.training_recipes.sft --config RECIPE.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from transformers import TrainingArguments

from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes.collate import SFTCollator, Weigh
from videosafety.training_recipes.recipe import Recipe
from videosafety.training_recipes.schema import Row
from videosafety.training_recipes.trainer import SFTTrainer

STAGES = ("sft", "at_sft")


@dataclass
class SFTSettings(TrainingArguments):
    """transformers' TrainingArguments, with the paper's rate of the language model, and what supervised stages add.

    Raises:
        ValueError: an option of Trainer that would go around the loss of ours.
    """

    learning_rate: float = 1e-6  # the paper's value
    visual_loss_weight: float = 0.1  # λ of the visual head in stage at_sft (the paper's value); stage sft has no such loss
    textual_loss_weight: float = 0.1
    token_weights: str | None = None  # dotted path package.module:function of a `collate.Weigh`; null: every token of an answer weighs 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing_factor or self.use_liger_kernel:
            raise ValueError("label_smoothing_factor and use_liger_kernel do not reach the loss of this trainer: leave them out")


def collator(recipe: Recipe, settings: SFTSettings, processor: Any) -> SFTCollator:
    """What makes batches of rows.

    Raises:
        ValueError: token_weights names no function.
    """
    weigh: Weigh | None = None
    if settings.token_weights is not None:
        try:
            found = resolve_name(settings.token_weights)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"token_weights {settings.token_weights!r} names no function as package.module:function: {error}") from error
        if not isinstance(found, Callable):  # type: ignore[arg-type]
            raise ValueError(f"token_weights {settings.token_weights!r} is no function")
        weigh = found
    return SFTCollator(recipes.encoder(recipe, processor), weigh)


def trainer_of(
    recipe: Recipe, settings: SFTSettings, model: Any, processor: Any, rows: Sequence[Row], held_out: Sequence[Row] | None = None
) -> SFTTrainer:
    """The trainer of a recipe, ready to train."""
    weights = (settings.visual_loss_weight, settings.textual_loss_weight) if recipe.stage == "at_sft" else (0.0, 0.0)
    return SFTTrainer(
        model=model,
        args=settings,
        data_collator=collator(recipe, settings, processor),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=processor,
        recipe=recipe,
        alarm_loss_weights=weights,
    )


def probe(trainer: SFTTrainer, rows: Sequence[Row]) -> dict[str, Any]:
    """For `dry_run`: one batch, its tokens and its loss."""
    batch = trainer._prepare_inputs(trainer.data_collator(rows))  # type: ignore[arg-type]
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    answers = int((batch["labels"] != -100).sum())
    return {"tokens": batch["input_ids"].numel(), "answer_tokens": answers, "loss": float(loss)}


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a recipe of stage sft or at_sft, or show what it would do.

    Raises:
        ValueError: the recipe, or DataError: its rows; the message says what to mend.
    """
    recipe, settings = recipes.parse(argv, SFTSettings)
    if recipe.stage not in STAGES:
        raise ValueError(f"stage is {recipe.stage}, and this script trains {' and '.join(STAGES)}")
    rows, held_out = recipes.load_rows(recipe)
    model, processor = recipes.load_model(recipe)
    trainer = trainer_of(recipe, settings, model, processor, rows, held_out)
    if recipe.dry_run:
        recipes.dry_run(recipe, settings, model, rows, lambda sample: probe(trainer, sample))
        return
    recipes.train(trainer)
    recipes.finish(trainer, recipe)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
