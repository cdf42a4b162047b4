"""What alarm tokens and heads cost in supervised training: a step of AT-SFT against a step of plain SFT of the same base, on the same rows.

    OMP_NUM_THREADS=1 python benchmarks/sft_step.py [--device cuda] [--shape small|2b] [--repeats 12]

Random weights: time does not depend on their values. A step is forward, backward and AdamW of one row: a video, a question, an answer, in
about the paper's ratio (up to 5,120 visual tokens, answers of a few hundred). Both steps are of our trainer, with the vision tower and
projector frozen and the language model learning; AT-SFT adds one token of each kind, their vectors, both heads and their losses. `stock`
is the plain step with transformers' own loss, on the logits of every token. All are timed in turns, the order reversed every other round,
after two rounds that are not counted. On a CPU, seconds are CPU seconds of this process, which other work on the machine changes least; on
a GPU, seconds by the clock, computing in bfloat16.

One JSON line comes last: step_ratio (AT-SFT / plain, goal <= 1.05) and stock_ratio (AT-SFT / stock) are medians of each round's quotient,
with their quartiles beside them: a goal within the quartiles is neither met nor missed by this run (`goals_met` null). Where the device
is not there, every figure is null and `status` says "not measured".
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from alarm_overhead import SHAPES, TEXTUAL, VISUAL, models, prompt
from timing import hardware, met, timed

from videosafety.training_recipes.recipe import Recipe, freeze
from videosafety.training_recipes.sft import SFTSettings
from videosafety.training_recipes.trainer import SFTTrainer

GOAL = 1.05
LEARN = ["language_model", "alarm_tokens", "alarm_heads"]


class StockTrainer(SFTTrainer):
    """The loss as transformers' forward computes it, on all logits."""

    def terms(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        inputs = {key: value for key, value in inputs.items() if key != "alarm_labels"}
        outputs = model(**inputs, use_cache=False)
        tokens = (inputs["labels"] != -100).sum()
        return torch.stack([outputs.loss * tokens, *outputs.loss.new_zeros(2)]), outputs.loss.new_zeros(1, 8), outputs


def batch(frames: int, patches: int, words: int, answer: int, model: Any, alarm: bool) -> dict[str, torch.Tensor]:
    """One row, labelled harmful in what is shown; without the two alarm tokens for the plain model."""
    inputs = prompt(frames, patches, words + answer, model)
    ids = inputs["input_ids"]
    kept = torch.ones_like(ids, dtype=torch.bool) if alarm else (ids != VISUAL) & (ids != TEXTUAL)
    inputs["input_ids"], inputs["attention_mask"] = ids[kept][None], inputs["attention_mask"][kept][None]
    labels = inputs["input_ids"].clone()
    labels[:, :-answer] = -100
    return inputs | {"labels": labels, "alarm_labels": torch.tensor([[1, 0]], device=ids.device)}


def step_of(kind: type[SFTTrainer], model: Any, row: dict[str, torch.Tensor], out: str, device: str) -> Callable[[], float]:
    """A function that takes one optimizer step on the row and returns the loss."""
    alarm = hasattr(model, "alarm_heads")
    recipe = Recipe(stage="at_sft" if alarm else "sft", model="", data=["-"], train=LEARN if alarm else LEARN[:1], alarm_token_lr=1e-5)
    freeze(model, recipe.train)
    settings = SFTSettings(output_dir=out, use_cpu=device == "cpu", bf16=device != "cpu", learning_rate=1e-6, remove_unused_columns=False)
    trainer = kind(model=model, args=settings, recipe=recipe, alarm_loss_weights=(0.1, 0.1) if alarm else (0.0, 0.0))
    optimizer = trainer.create_optimizer()
    prepared = trainer.accelerator.prepare_model(model)

    def step() -> float:
        items = trainer._get_num_items_in_batch([row], model.device)
        loss = trainer.training_step(prepared, dict(row), items)
        optimizer.step()
        optimizer.zero_grad()
        trainer.seen.clear()  # figures are kept until a log
        trainer.shares.clear()
        return float(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--patches", type=int, default=4, help="tokens along each side of a frame")
    parser.add_argument("--words", type=int, default=16, help="tokens of the question")
    parser.add_argument("--answer", type=int, default=32, help="tokens of the answer")
    asked = parser.parse_args()

    told: dict[str, Any] = {"device": asked.device, "shape": asked.shape, "repeats": asked.repeats, "goal": GOAL}
    told |= {"torch": torch.__version__, "transformers": transformers.__version__}
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"step_ratio": None, "stock_ratio": None, **told, "status": "not measured", "why": "no CUDA device here"}))
        return
    plain, alarm = models(asked.shape, asked.device, torch.float32)
    stock, _ = models(asked.shape, asked.device, torch.float32)
    size = (asked.frames, asked.patches, asked.words, asked.answer)
    rows = {"plain": batch(*size, plain, alarm=False), "alarm": batch(*size, alarm, alarm=True)}
    rows["stock"] = rows["plain"]
    with tempfile.TemporaryDirectory() as out:
        kinds = {"plain": (SFTTrainer, plain), "alarm": (SFTTrainer, alarm), "stock": (StockTrainer, stock)}
        ways = {way: step_of(kind, model, rows[way], out, asked.device) for way, (kind, model) in kinds.items()}
        losses: dict[str, float] = {}
        rounds: list[dict[str, float]] = []

        def one(way: str) -> None:
            losses[way] = ways[way]()

        for number in range(asked.repeats + 2):
            order = list(ways)[:: -1 if number % 2 else 1]
            rounds.append({way: timed(lambda way=way: one(way), asked.device) for way in order})
            print({way: f"{seconds * 1e3:.0f} ms" for way, seconds in rounds[-1].items()}, file=sys.stderr)
            # Two models with the same start, steps and rows: the plain loss is the same in both ways of computing it.
            assert abs(losses["plain"] - losses["stock"]) < 1e-3 * losses["plain"] or asked.device != "cpu", losses
    rounds = rounds[2:]
    quotients = {name: [r["alarm"] / r[other] for r in rounds] for name, other in (("step_ratio", "plain"), ("stock_ratio", "stock"))}
    figures: dict[str, Any] = {name: round(statistics.median(found), 4) for name, found in quotients.items()}
    spread = {name: [round(q, 4) for q in statistics.quantiles(found, n=4)[::2]] for name, found in quotients.items()}
    figures |= {f"{name}_quartiles": found for name, found in spread.items()}
    figures |= {f"{way}_ms": round(1e3 * statistics.median(r[way] for r in rounds), 1) for way in ways}
    told |= {
        "status": "measured",
        "hardware": hardware(asked.device),
        "visual_tokens": asked.frames * asked.patches**2,
        "answer_tokens": asked.answer,
    }
    told |= {"tokens": rows["alarm"]["input_ids"].shape[1], "parameters": alarm.num_parameters()}
    print(json.dumps(figures | told | {"goals_met": {"step_ratio": met(spread["step_ratio"], GOAL, at_least=False)}}))


if __name__ == "__main__":
    main()
