"""One of two processes that test_alarm_training.py starts: the largest relative difference of two processes from one, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from videosafety.hf_models.alarm_core import UNLABELLED
from videosafety.hf_models.families import FAMILIES

NAME = "videollama3"
LABELS = torch.tensor([[1, 0], [0, UNLABELLED]])


def fresh(folder: str) -> Any:
    return FAMILIES[NAME].model.from_pretrained(folder)


def gradients(net: Any) -> dict[str, torch.Tensor]:
    found = {key.removeprefix("module."): value.grad for key, value in net.named_parameters() if value.grad is not None}
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in found.items()}


def gap(mine: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == its.keys(), set(mine) ^ set(its)
    return max(float((mine[key] - its[key]).abs().max() / its[key].abs().max().clamp(min=1e-3)) for key in its)


def main(rank: int, folder: str, scratch: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{scratch / 'store'}", rank=rank, world_size=2)
    prompts = torch.load(scratch / "prompts.pt")
    items = (LABELS != UNLABELLED).sum(0)

    single = fresh(folder)
    for row, inputs in enumerate(prompts):
        result = single(**inputs, labels=inputs["input_ids"], alarm_labels=LABELS[row : row + 1], num_alarm_items=items)
        (result.alarm_loss + 0.5 * (result.loss - result.alarm_loss)).backward()
    expected = gradients(single)
    mine, label = prompts[rank], LABELS[rank : rank + 1]
    found: dict[str, float] = {}

    def step(net: Any) -> dict[str, torch.Tensor]:
        """One backward pass; both means over the two processes, so the alarm loss counts twice."""
        result = net(**mine, labels=mine["input_ids"], alarm_labels=label, num_alarm_items=items)
        (result.loss + result.alarm_loss).backward()
        return gradients(net)

    found["ddp"] = gap(step(DistributedDataParallel(fresh(folder))), expected)

    frozen = fresh(folder).requires_grad_(False)
    frozen.alarm_tokens.requires_grad_(True)
    frozen.alarm_heads.requires_grad_(True)
    wrapped = DistributedDataParallel(frozen)
    for _ in range(2):  # a parameter without a gradient would stop the second pass; the second process has no label at all
        wrapped(**mine, alarm_labels=label if rank == 0 else torch.full_like(label, UNLABELLED)).loss.backward()
    found["ddp_unlabelled"] = float(not all(value.isfinite().all() for value in gradients(wrapped).values()))

    sharded = fresh(folder)
    for layer in sharded.model.language_model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    register_fsdp_forward_method(sharded, "alarm_probs")
    found["fsdp2"] = gap(step(sharded), expected)
    probs = sharded.alarm_probs(**mine)
    found["fsdp2_probs"] = float((probs - single.alarm_probs(**mine)).abs().max())

    together: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(together, found)
    if rank == 0:
        (scratch / "found.json").write_text(json.dumps({key: max(values[key] for values in together) for key in found}), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
