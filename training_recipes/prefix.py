"""A prompt once, its answers after it: the layout in which many answers to one prompt share the work on it, in sampling and in scoring."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from videosafety.training_recipes.shared_video import Seen, join, plain, see

PACKS = ("sdpa", "eager")  # the attention implementations of transformers that take a mask of our own


@dataclass(slots=True)
class Prompt:
    """One prompt as the model gets it. ids: (length,). positions: (1, length), or (3, length) where the model rotates by time, height and
    width. inputs: the processor's tensors of its media. media: names these. seen: their features; None while the tower learns."""

    ids: torch.Tensor
    positions: torch.Tensor
    inputs: dict[str, Any]
    media: str = ""
    seen: Seen | None = None


class Layout(NamedTuple):
    """Sequences for one pass, and where in it each answer's tokens are predicted.

    inputs: input_ids, attention_mask, position_ids. places: (sequence, column) indices of the hidden states that predict. targets: the ids
    to predict. answers: (answer, token) index of each of them. All three have one entry for each token of the answers.
    """

    inputs: dict[str, torch.Tensor]
    places: tuple[torch.Tensor, torch.Tensor]
    targets: torch.Tensor
    answers: tuple[torch.Tensor, torch.Tensor]


def packs(model: Any) -> bool:
    """Whether answers to one prompt can stand behind one copy of it: that takes a mask that says which tokens see which.

    Not with flash attention, which has no such mask, and not with sliding windows, which count tokens and not positions.
    """
    config = plain(model).config.get_text_config()
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return config._attn_implementation in PACKS and not sliding


def prompt_of(model: Any, inputs: dict[str, Any], media: str) -> Prompt:
    """A prompt from the processor's tensors for it alone, without padding. Prompts that agree in `media` show the same."""
    backbone = plain(model).base_model
    ids = inputs["input_ids"]
    positions = torch.arange(ids.shape[1])[None]
    if hasattr(backbone, "get_rope_index"):
        positions = positions.expand(3, -1)
        if any(key in inputs for key in ("image_grid_thw", "video_grid_thw")):
            takes = inspect.signature(backbone.get_rope_index).parameters
            positions = backbone.get_rope_index(**{key: value for key, value in inputs.items() if key in takes})[0][:, 0]
    rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    return Prompt(ids[0], positions, rest, media)


def lay_out(
    groups: Sequence[tuple[Prompt, Sequence[tuple[int, torch.Tensor]]]], pad: int, device: torch.device, additive: torch.dtype | None = None
) -> Layout:
    """One sequence for each prompt: the prompt but for its last token, then for each of its answers that last token and the answer.

    Every answer thus starts from a copy of the last token: it sees the prompt and itself, at the positions that it has alone, so that its
    log-probabilities are those of the row `prompt answer`. A prompt with one answer is just that row. An answer's last token is left out,
    since nothing is predicted from it.

    Args:
        groups: prompts, each with its answers and their numbers, at least one, of at least one token each. pad: fills up on the right.
        additive: the dtype of a mask that is added to attention scores (eager attention); None: a mask of booleans.
    """
    sequences, positions, parts = [], [], []
    places: list[tuple[int, int]] = []
    answers: list[tuple[int, int]] = []
    targets = []
    for number, (prompt, own) in enumerate(groups):
        after = int(prompt.positions.max()) + 1
        ids, where, part = [prompt.ids[:-1]], [prompt.positions[:, :-1]], [torch.zeros(len(prompt.ids) - 1, dtype=torch.long)]
        start = len(prompt.ids) - 1
        for count, (index, answer) in enumerate(own, 1):
            length = len(answer)
            ids += [prompt.ids[-1:], answer[:-1]]
            where += [prompt.positions[:, -1:], torch.arange(after, after + length - 1).expand(len(prompt.positions), -1)]
            part.append(torch.full((length,), count))
            targets.append(answer)
            places += [(number, start + step) for step in range(length)]
            answers += [(index, step) for step in range(length)]
            start += length
        sequences.append(torch.cat(ids))
        positions.append(torch.cat(where, 1))
        parts.append(torch.cat(part))
    longest = max(len(ids) for ids in sequences)
    segments = _filled(parts, longest, -1).to(device)
    inputs = {
        "input_ids": _filled(sequences, longest, pad).to(device),
        "attention_mask": _mask(segments, additive) if any(len(own) > 1 for _, own in groups) else (segments >= 0).long(),
        "position_ids": _rows_last(torch.stack([_filled(list(rows), longest, 0) for rows in positions])).to(device),
    }
    place, answer = torch.tensor(places, device=device).T, torch.tensor(answers, device=device).T
    return Layout(inputs, (place[0], place[1]), torch.cat(targets).to(device), (answer[0], answer[1]))


def _filled(rows: Sequence[torch.Tensor], length: int, value: int) -> torch.Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=value) for row in rows])


def _rows_last(positions: torch.Tensor) -> torch.Tensor:
    """(sequences, 1 or 3, length) as models take it: (sequences, length), or (3, sequences, length)."""
    return positions[:, 0] if positions.shape[1] == 1 else positions.transpose(0, 1)


def _mask(segments: torch.Tensor, additive: torch.dtype | None) -> torch.Tensor:
    """(sequences, 1, length, length): which token (third axis) sees which. segments: 0 prompt, 1 … answers, -1 padding."""
    asks, asked = segments[:, :, None], segments[:, None, :]
    sees = ((asked == 0) | (asked == asks)).tril()[:, None]
    if additive is None:
        return sees
    return torch.zeros_like(sees, dtype=additive).masked_fill(~sees, torch.finfo(additive).min)


@contextlib.contextmanager
def only(model: Any, places: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """While it lasts, the backbone gives the hidden states at `places` alone, as one sequence: the head then sees nothing else."""

    def pick(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[places][None]
        return output

    handle = plain(model).base_model.register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def prefill(model: Any, prompts: Sequence[Prompt], owners: Sequence[int], pad: int, device: torch.device) -> dict[str, Any]:
    """Run each prompt once, for any number of answers to it. What generate() goes on from: its keyword arguments, one row an answer, with
    prompts padded on the left and all but their last token in the cache.

    Args:
        owners: for each answer the index of its prompt.
    """
    longest = max(len(prompt.ids) for prompt in prompts)

    def left(row: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(row, (longest - len(row), 0), value=value)

    ids = torch.stack([left(prompt.ids, pad) for prompt in prompts]).to(device)
    mask = torch.stack([left(torch.ones_like(prompt.ids), 0) for prompt in prompts]).to(device)
    rotations = torch.stack([torch.stack([left(row, 0) for row in prompt.positions]) for prompt in prompts]).to(device)
    positions = _rows_last(rotations)
    if positions.dim() == 3:  # generate() has the places of text before those of time, height and width
        positions = torch.cat([(mask.cumsum(-1) - 1).clamp(min=0)[None], positions])
    output = plain(model).base_model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[..., :-1],
        use_cache=True,
        **join([see(model, prompt.inputs) if prompt.seen is None else prompt.seen for prompt in prompts]),
    )
    rows = torch.tensor(list(owners), device=device)
    output.past_key_values.batch_select_indices(rows)
    positions = positions[:, rows] if positions.dim() == 3 else positions[rows]
    return {"input_ids": ids[rows], "attention_mask": mask[rows], "position_ids": positions, "past_key_values": output.past_key_values}
