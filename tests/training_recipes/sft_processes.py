"""One of several processes that test_sft_distributed.py starts: trains each case, evaluates, and the first process saves what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from sft_cases import ALL, recipe, rows, trainer, weights

from videosafety.training_recipes.recipe import finish

CASES: dict[str, dict[str, Any]] = {
    "as the paper trains": {},
    "with vision": {"train": [*ALL, "vision", "projector"]},  # rows of text alone leave it without a gradient in some processes
    "LoRA": {"lora_rank": 2},
}


def run(case: str, model: str, media: str, out: Path, processes: int) -> dict[str, Any]:
    """Two steps of four rows, and five held-out rows: weights, training log and held-out figures."""
    what = recipe(model=model, data_root=media, data=[str(Path(media) / "rows.jsonl")], **CASES[case])
    split: dict[str, Any] = {"ddp_backend": "gloo"} if processes > 1 else {}
    split |= {"per_device_train_batch_size": 2 // processes, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2}
    one = trainer(out / case, what, rows(8), rows(5), seed=3, **split)
    one.train()
    found = one.evaluate()
    finish(one, what)
    figures = [line for line in one.state.log_history if "loss" in line]
    return {"weights": weights(one.model), "log": figures, "eval": {k: v for k, v in found.items() if "loss" in k or "auroc" in k}}


if __name__ == "__main__":
    folder, media, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    results = {case: run(case, folder, media, out, processes=2) for case in CASES}
    if torch.distributed.get_rank() == 0:
        torch.save(results, out / "found.pt")
    torch.distributed.destroy_process_group()
