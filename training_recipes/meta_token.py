"""Baseline after HoliSafe's safety meta token: one head says which kind of harm the visuals show, in place of two heads of 0 or 1.

SafeLLaVA (arXiv 2506.04704) adds a learned token to the visual tokens and reads its state with an MLP of two layers (half as wide inside)
over 20 classes, safe and 19 kinds of harm; its loss is that of the answers plus the head's cross-entropy. Here the visual alarm token is
that token and the kinds are those of the rows' `category`. The textual alarm token stays in the prompt as one more learned vector, without
a head: removing it would change every prompt that is compared.

    accelerate launch --config_file training_recipes/accelerate_configs/single.yaml -m videosafety.training_recipes.meta_token \\
        --config training_recipes/baselines/meta_token.yaml
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from videosafety.hf_models.alarm_core import AlarmHeads
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes import sft
from videosafety.training_recipes.collate import UNLABELLED, SFTCollator
from videosafety.training_recipes.data import DataError
from videosafety.training_recipes.recipe import Recipe
from videosafety.training_recipes.schema import Row
from videosafety.training_recipes.trainer import LOSSES, SFTTrainer

SAFE = "safe"
RECORD = "meta_token.json"  # in the folder that a run leaves: the head's classes, in its order


class KindHead(AlarmHeads):
    """Stands in for a model's alarm heads: an MLP over safe and `kinds` kinds of harm, at the last visual alarm token.

    Gives logits (batch, 2) as alarm heads do: the log odds that the visuals are harmful, of whatever kind, and NaN for the text. The two
    linear heads stay, as NaN: a checkpoint loads without this class, and then says of every prompt that it knows no probability.
    """

    def __init__(self, heads: AlarmHeads, kinds: int) -> None:
        hidden = heads.visual.in_features
        super().__init__(*heads.ids, hidden)
        self.kinds = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.GELU(), nn.Linear(hidden // 2, 1 + kinds))
        self.logits: torch.Tensor | None = None  # (batch, 1 + kinds) of the last pass
        for head in (self.visual, self.textual):
            nn.init.constant_(head.bias, torch.nan)
            head.requires_grad_(False)

    def forward(self, input_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        places = (input_ids == self.ids[0]).int().argmax(dim=-1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            self.logits = self.kinds(hidden_states[torch.arange(len(places)), places].float())
        harmful = self.logits[:, 1:].logsumexp(-1) - self.logits[:, 0]
        return torch.stack([harmful, torch.full_like(harmful, torch.nan)], -1)


class MetaTokenCollator:
    """Batches of `SFTCollator` with `kinds` (batch,): which kind of harm the visuals show, UNLABELLED where they show none or nobody says.
    Textual labels are left out, since nothing learns from them."""

    def __init__(self, collator: SFTCollator, kinds: Sequence[str]) -> None:
        self.collator, self.kinds = collator, list(kinds)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = self.collator(rows)
        batch["alarm_labels"][:, 1] = UNLABELLED
        known = [row["visual_label"] == 1 and row["category"] in self.kinds for row in rows]
        kinds = [self.kinds.index(str(row["category"])) if is_kind else UNLABELLED for row, is_kind in zip(rows, known, strict=True)]
        return {**batch, "kinds": torch.tensor(kinds)}


class MetaTokenTrainer(SFTTrainer):
    """SFTTrainer whose visual term is the cross-entropy over safe and kinds: that of safe against harmful, plus, where the kind is known,
    that of the kind among kinds. λ of that term is `visual_loss_weight`."""

    def terms(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        inputs = dict(inputs)
        kinds = inputs.pop("kinds")
        sums, rows, outputs = super().terms(model, inputs)
        logits = self.accelerator.unwrap_model(model).alarm_heads.logits[:, 1:]
        among = functional.cross_entropy(logits, kinds, ignore_index=UNLABELLED, reduction="none")
        rows[:, LOSSES.start] += among.detach()
        return torch.stack([sums[0], sums[1] + among.sum(), sums[2]]), rows, outputs


def kinds_of(rows: Sequence[Row]) -> list[str]:
    """The categories of the rows with harmful visuals, sorted.

    Raises:
        DataError: there is none.
    """
    found = sorted({str(row["category"]) for row in rows if row["visual_label"] == 1 and row["category"]})
    if not found:
        raise DataError("videosafety: no row has visual_label 1 and a category: a head over kinds of harm has nothing to learn")
    return found


def trainer_of(
    recipe: Recipe, settings: sft.SFTSettings, model: Any, processor: Any, rows: Sequence[Row], held_out: Sequence[Row] | None = None
) -> MetaTokenTrainer:
    """The trainer of a recipe, ready to train; `model` gets its head."""
    kinds = kinds_of(rows)
    torch.manual_seed(settings.seed)
    model.alarm_heads = KindHead(model.alarm_heads, len(kinds))
    return MetaTokenTrainer(
        model=model,
        args=settings,
        data_collator=MetaTokenCollator(sft.collator(recipe, settings, processor), kinds),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=processor,
        recipe=recipe,
        alarm_loss_weights=(settings.visual_loss_weight, 0.0),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a recipe of stage at_sft with a head over kinds of harm, or show what it would do.

    Raises:
        ValueError: the recipe, or DataError: its rows; the message says what to mend.
    """
    recipe, settings = recipes.parse(argv, sft.SFTSettings)
    if recipe.stage != "at_sft" or "alarm_heads" not in recipe.train or recipe.lora_rank:
        raise ValueError("a meta token is trained in stage at_sft, with alarm_heads in train and lora_rank 0")
    rows, held_out = recipes.load_rows(recipe)
    kinds_of(rows)  # before gigabytes are loaded for nothing
    model, processor = recipes.load_model(recipe)
    trainer = trainer_of(recipe, settings, model, processor, rows, held_out)
    if recipe.dry_run:
        recipes.dry_run(recipe, settings, model, rows, lambda sample: sft.probe(trainer, sample))
        return
    recipes.train(trainer)
    out = recipes.finish(trainer, recipe)
    if trainer.is_world_process_zero():
        record = {"classes": [SAFE, *kinds_of(rows)], "weights": "alarm_heads.kinds.* of model.safetensors"}
        (Path(out) / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
