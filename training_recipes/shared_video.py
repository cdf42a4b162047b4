"""Visual features computed once and shared: by all answers to a prompt, by sampling and scoring, by the policy and its reference.

transformers' video models take the output of their vision tower in place of pixels (`mm_encoder_outputs`), as generate() gives it to them.
It can be kept only while nothing that makes it learns: see `learns`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from videosafety.training_recipes.recipe import part_of

T = TypeVar("T")
SEES = ("vision", "projector")  # the parts of a model (recipe.PARTS) that make features


@dataclass(frozen=True, slots=True)
class Features:
    """What a vision tower and projector made of one prompt's images or videos.

    pooled: (tokens, hidden), in the order of the placeholders and without those that the processor's compression left out.
    deepstack: (tokens, hidden) for each layer that gets features of its own (Qwen3-VL), else empty. listed: the family gives a list of
    tensors where others give one.
    """

    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    listed: bool


Seen = dict[str, Features]  # "image", "video" -> features; empty for a prompt of text alone


def plain(model: Any) -> Any:
    """The transformers model in a PEFT model, a wrapper for several processes, or in neither."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def inside(model: Any, work: Callable[[], T]) -> T:
    """What `work` returns, done as a part of the model's forward: under FSDP2 only there are weights of a submodule whole."""
    if not isinstance(model, FSDPModule):
        return work()
    sharded: Any = model
    if not hasattr(sharded, "work_inside"):
        sharded.work_inside = _do
        register_fsdp_forward_method(sharded, "work_inside")
    return sharded.work_inside(work)


def _do(work: Callable[[], T]) -> T:
    return work()


def learns(model: Any) -> bool:
    """Whether the vision tower or the projector learns: then features change from step to step, and need gradients."""
    return any(p.requires_grad and part_of(name) in SEES for name, p in plain(model).named_parameters())


def visual_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The processor's tensors that the encoder of each modality takes, for each modality that is there."""
    found = {}
    for modality in ("image", "video"):
        if encode := getattr(plain(model).base_model, f"get_{modality}_features", None):
            names = inspect.signature(encode).parameters
            taken = {key: value for key, value in inputs.items() if key in names}
            if any(key.startswith("pixel_values") for key in taken):
                found[modality] = taken
    return found


def see(model: Any, inputs: Mapping[str, Any]) -> Seen:
    """The features of one prompt, from the processor's tensors for it. With gradients where these are on and the tower learns."""
    backbone = plain(model).base_model
    seen = {}
    for modality, taken in visual_inputs(model, inputs).items():
        output = getattr(backbone, f"get_{modality}_features")(**taken, return_dict=True)
        pooled = output.pooler_output
        flat = pooled if torch.is_tensor(pooled) else torch.cat(list(pooled))
        flat = flat.reshape(-1, flat.shape[-1])
        kept = inputs.get(f"{modality}_compression_mask")  # VideoLLaMA3: which tokens its processor kept
        if kept is not None:
            flat = flat[kept.to(flat.device)]
        deepstack = getattr(output, "deepstack_features", None) or ()
        seen[modality] = Features(flat, tuple(torch.cat(list(layer)) for layer in deepstack), not torch.is_tensor(pooled))
    return seen


def join(prompts: Iterable[Seen]) -> dict[str, Any]:
    """The features of a batch, in the order of its rows, as a model's forward takes them: {"mm_encoder_outputs": …}."""
    every = list(prompts)
    outputs = {}
    for modality in ("image", "video"):
        found = [seen[modality] for seen in every if modality in seen]
        if found:
            pooled = torch.cat([features.pooled for features in found])
            layers = [[torch.cat(layer)] for layer in zip(*(features.deepstack for features in found), strict=True)]
            outputs[modality] = SimpleNamespace(pooler_output=[pooled] if found[0].listed else pooled[None], deepstack_features=layers)
    return {"mm_encoder_outputs": outputs}
