"""Names and shapes: the authors' VideoLLaMA3 weights, as DAMO-NLP-SG and the VideoSafety-R1 training code write them, in transformers'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from videosafety.hf_models.checkpoint import Tensors, some

# The published checkpoints have model.vision_encoder.*, those of the training code model.vision_encoder.vision_encoder.*; a model of the
# one kind that loads the other silently keeps a vision tower that it never got (github.com/DAMO-NLP-SG/VideoLLaMA3, issue 66).
RENAMES = (
    (re.compile(r"model\.vision_encoder\.(?:vision_encoder\.)?"), "model.vision_model."),
    (re.compile(r"model\.mm_projector\."), "model.projector."),
    (re.compile(r"model\.(?=(?:embed_tokens|layers|norm)\.)"), "model.language_model."),
    (re.compile(r"lm_head\."), "lm_head."),
)
# VideoSafety-R1: bare parameters (1, hidden), and linear heads after its second stage only (videollama3/model/videollama3_qwen2.py of
# github.com/Emiya-syw/VideoSafety-R1).
VECTORS = ("visual_alarm_tokens", "textual_alarm_tokens")
HEADS = {"visual_tokens_cls": "alarm_heads.visual", "textual_tokens_cls": "alarm_heads.textual"}


def rename(weights: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    """The (base, alarm) tensors of an authors' checkpoint under the names of our classes; `alarm` is empty for a plain one.

    Raises:
        ValueError: a name that belongs to no part, two for one tensor, or alarm tensors that are not (1, hidden) and in pairs.
    """
    base: Tensors = {}
    alien: list[str] = []
    for key, tensor in weights.items():
        if key in VECTORS or key.rpartition(".")[0] in HEADS:
            continue
        new = next((target + key[match.end() :] for pattern, target in RENAMES if (match := pattern.match(key))), None)
        if new is None:
            alien.append(key)
        elif new in base:
            raise ValueError(f"two tensors for {new}: the vision tower is in the checkpoint in both layouts ({key})")
        else:
            base[new] = tensor
    if alien:
        raise ValueError(f"{len(alien)} tensors belong to no part of VideoLLaMA3: {some(alien)}")
    return base, _alarm(weights)


def _alarm(weights: Mapping[str, torch.Tensor]) -> Tensors:
    vectors = [weights[name] for name in VECTORS if name in weights]
    heads = {
        f"{HEADS[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": weights[key] for key in weights if key.rpartition(".")[0] in HEADS
    }
    wanted = {f"{head}.{part}" for head in HEADS.values() for part in ("weight", "bias")}
    if not vectors and not heads:
        return {}
    if len(vectors) != len(VECTORS) or (heads and heads.keys() != wanted):
        raise ValueError(f"alarm tensors are there only in part: need {' and '.join(VECTORS)}, and of the heads all or none")
    shapes = {tuple(vector.shape) for vector in vectors}
    if len(shapes) != 1 or len(vectors[0].shape) != 2 or vectors[0].shape[0] != 1:
        raise ValueError(f"alarm vectors must have the shape (1, hidden), these have {sorted(shapes)}: gather a ZeRO-3 checkpoint first")
    return {"alarm_tokens.weight": torch.cat(vectors), **heads}


def check(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], optional: Iterable[str] = ()) -> None:
    """Every tensor of the model is given, by name and by shape, and no other.

    Args:
        wanted: those of the model; only shapes are read, so they may be on the meta device. optional: names that may be absent.

    Raises:
        ValueError: names the first few that do not match.
    """
    missing = sorted(wanted.keys() - given.keys() - set(optional))
    extra = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{key} {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(given.keys() & wanted.keys())
        if given[key].shape != wanted[key].shape
    ]
    faults = [("missing", missing), ("unknown", extra), ("of another shape", shapes)]
    if any(found for _, found in faults):
        told = "; ".join(f"{len(found)} {what}: {some(found)}" for what, found in faults if found)
        raise ValueError(f"the weights do not match the model key for key: {told}")
