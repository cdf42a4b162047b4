"""Stage 4: safety-guided GRPO. `accelerate launch -m videosafety.training_recipes.grpo --config RECIPE.yaml`.

Defaults are the paper's recipe (G 6, ε 0.2, β 0.04, completions of 768 tokens, gradient norm 5, weight decay 0.01) but for two. Answers are
sampled from the whole softmax (top_p 1.0; the released code samples from 0.95 of it and scores under all of it). And a prompt's answers are
one micro-batch (per_device_train_batch_size 6), so that they share the work on the prompt; the paper counts a prompt where TRL counts an
answer. vLLM is refused: see `grpo_trainer.NO_VLLM`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import set_seed
from trl import GRPOConfig

from videosafety.lmms_eval_tasks.judge import get_judge, judge_spec
from videosafety.training_recipes import rewards
from videosafety.training_recipes.grpo_trainer import LABEL, THINK, VideoGRPOTrainer, check
from videosafety.training_recipes.recipe import Recipe, dry_run, encoder, finish, load_model, load_rows, parse, train


@dataclass
class Settings(GRPOConfig):
    """TRL's, with this stage's defaults."""

    num_generations: int | None = 6
    per_device_train_batch_size: int = 6
    max_completion_length: int | None = 768
    beta: float = 0.04
    epsilon: float = 0.2
    loss_type: str = "grpo"
    temperature: float = 1.0
    top_p: float = 1.0
    learning_rate: float = 1e-6
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03  # a share of all steps
    weight_decay: float = 0.01
    max_grad_norm: float = 5.0


@dataclass
class Answers:
    """What is asked of the model and how its answers are rewarded."""

    reward: str = "dra_safe"  # or dra_paper; see rewards.py
    judge: str | None = None  # of dra_safe: a judge's spec; null: VIDEOSAFETY_JUDGE, else offline
    think: str = THINK  # added to every prompt
    label: str = LABEL  # added after it to prompts of safety rows; {medium} becomes video or image


def reward_of(answers: Answers) -> Callable[..., list[float | None]]:
    """The reward function.

    Raises:
        ValueError: no such reward or judge.
    """
    if answers.reward not in rewards.WHOLE:
        raise ValueError(f"reward must be one of {', '.join(rewards.WHOLE)}, got {answers.reward!r}")
    if answers.reward == "dra_paper":
        if answers.judge is not None:
            raise ValueError("judge is for dra_safe: dra_paper asks none")
        return rewards.dra_paper
    get_judge(answers.judge or judge_spec())  # now, and not after the first answers were sampled
    return functools.partial(rewards.dra_safe, judge=answers.judge)


def trainer_of(recipe: Recipe, settings: Settings, answers: Answers) -> VideoGRPOTrainer:
    """The trainer of a recipe, with everything checked and loaded.

    Raises:
        ValueError, DataError: what cannot be; settings and rows are checked before a model is loaded.
    """
    if recipe.stage != "grpo":
        raise ValueError(f"stage {recipe.stage} is not this script's: it is for grpo")
    reward = reward_of(answers)
    rows, held_out = load_rows(recipe)
    needs = bool(settings.beta) and not recipe.lora_rank
    check(settings, len(rows), wants_reference=not recipe.lora_rank, has_reference=needs)
    set_seed(settings.seed)  # LoRA starts from random numbers
    model, processor = load_model(recipe)
    reference = load_model(replace(recipe, train=[]))[0] if needs else None
    return VideoGRPOTrainer(
        model,
        reward,
        settings,
        rows,
        encoder(recipe, processor),
        recipe,
        reference=reference,
        eval_rows=held_out,
        think=answers.think,
        label=answers.label,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a recipe of stage grpo, or show what it would do.

    Raises:
        ValueError: the recipe, or DataError: its rows; the message says what to mend.
    """
    recipe, settings, answers = parse(argv, Settings, Answers)
    trainer = trainer_of(recipe, settings, answers)
    if recipe.dry_run:
        dry_run(recipe, settings, trainer.model, trainer.rows, trainer.probe)
        return
    train(trainer)
    finish(trainer, recipe)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
