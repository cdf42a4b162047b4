"""What test_grpo_distributed.py does in one process and in two: steps of GRPO with given answers, and the weights afterwards."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import grpo_cases as cases
import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import fully_shard

# The work of one optimiser step, however it is divided. A group without a signal: r1. A process without any: that of r2 and r3 in `idle`.
REWARDS = {
    "whole": {0: (1.0, 0.0, 0.5), 1: (2.0, 2.0, 2.0), 2: (0.1, None, 0.9), 3: (0.0, 1.0, 1.0)},
    "idle": {0: (1.0, 0.0, 0.5), 1: (0.3, 0.2, 0.1), 2: (2.0, 2.0, 2.0), 3: (None, None, None)},
}
REWARDS["projector"] = REWARDS["whole"]
REWARDS["split"] = {0: (1.0, 0.0, 0.5, 0.2, 0.9, None)}  # the answers to one prompt are of both processes
GLOO: dict[str, Any] = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}


def answer(row: str, number: int) -> list[int]:
    """The same for the same row and number, in any process."""
    generator = torch.Generator().manual_seed(100 * int(row[1:]) + number)
    length = 3 + int(torch.randint(4, (1,), generator=generator))
    return torch.randint(30, 200, (length,), generator=generator).tolist()


def work(case: str, scratch: Path, processes: int) -> None:
    split, rewards = case == "split", REWARDS[case]
    numbers: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, id: Any, **columns: Any) -> list[float | None]:
        return [rewards[int(name[1:])][number] for name, number in zip(id, numbers["own"], strict=True)]

    trainer = cases.trainer(
        scratch / "out",
        cases.rows(len(rewards)),
        reward=reward,
        train=["language_model", "projector"] if case == "projector" else ["language_model"],
        num_generations=6 if split else 3,
        per_device_train_batch_size=(6 if split else 12) // processes,
        shuffle_dataset=False,
        optim="sgd",
        max_steps=2,
        num_iterations=2,
        **GLOO,
    )

    def given(self: Any, *_: Any) -> Any:
        first = self.accelerator.process_index * len(self._rows)
        numbers["own"] = [(first + n) % self.num_generations for n in range(len(self._rows))]
        self._see(self.model)
        return [answer(row["id"], number) for row, number in zip(self._rows, numbers["own"], strict=True)], None

    trainer._generate_single_turn = types.MethodType(given, trainer)
    trainer.train()
    state = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    if trainer.accelerator.is_main_process:
        torch.save({"weights": state, "log": trainer.state.log_history}, scratch / f"{case}-{trainer.accelerator.num_processes}.pt")


def sharded(scratch: Path, processes: int) -> None:
    """Sampling, reference, policy and gradients where FSDP2 has the weights in pieces: those of one process, which has them whole.

    Without Accelerate, which shards on accelerators alone.
    """
    trainer = cases.trainer(scratch / "out", cases.rows(4), per_device_train_batch_size=12 // processes, **GLOO)
    trainer.current_gradient_accumulation_steps = 1
    trainer.generation_config.do_sample = False
    for model in (trainer.model, trainer.ref_model):
        if processes > 1:
            for layer in model.base_model.language_model.layers:
                fully_shard(layer)
            fully_shard(model)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lm_head" in name:  # off its reference
                weight.mul_(1.5)
    first = trainer.accelerator.process_index * 12 // processes
    own = [row for row in trainer.rows for _ in range(3)][first : first + 12 // processes]
    # Greedy answers to one prompt are alike: their rewards are not.
    trainer.reward_funcs = [lambda prompts, **_: [float(n % 3) for n in range(len(prompts))]]
    batch = trainer._generate_and_score_completions(own)
    trainer._compute_loss(trainer.model, batch).backward()
    found = {"completions": gather_object(batch["completion_ids"].tolist()), "reference": []}
    found["reference"] = gather_object(batch["ref_per_token_logps"].tolist())
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    found |= {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in gradients.items()}
    if trainer.accelerator.is_main_process:
        torch.save(found, scratch / f"sharded-{processes}.pt")


if __name__ == "__main__":
    made, clips = Path(sys.argv[1]), Path(sys.argv[2])
    cases.checkpoint, cases.media = lambda *_: made, lambda: clips  # type: ignore[assignment]
    for name in sys.argv[4:]:
        work(name, Path(sys.argv[3]), 2) if name in REWARDS else sharded(Path(sys.argv[3]), 2)
