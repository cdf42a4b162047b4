"""From rows to tensors, the same way in every stage: frames by evaluation's own code, answers appended to prompts token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from videosafety.hf_models.alarm_core import TEXTUAL_ALARM, VISUAL_ALARM
from videosafety.lmms_eval_tasks.inputs import model_inputs
from videosafety.lmms_eval_tasks.pipeline import Frames, Loaded, Request, load
from videosafety.lmms_eval_tasks.video import MediaError
from videosafety.training_recipes.data import DataError, prompt_messages
from videosafety.training_recipes.schema import IMAGE, LABELS, VIDEO, Row

UNLABELLED = -100  # the index that losses of torch and transformers leave out
ALARMS = (VISUAL_ALARM.removesuffix("|>"), TEXTUAL_ALARM.removesuffix("|>"))  # how alarm tokens begin, those with a number too
_SMALLER = "set per_device_train_batch_size to 1 and gradient_accumulation_steps to as much more, which gives the same gradients"
THOUGHT = ("<think>", "</think>")  # tokens of their own in some vocabularies (Qwen3's), and plain text of answers and instructions here
_MARK = "ANSWER"  # stands in for an answer to see what the chat template writes around one


# (row, ids of its answer and of what closes it, tokenizer) -> a weight, 0 or more, for each id.
Weigh = Callable[[Row, list[int], Any], Sequence[float]]


class Encoded(NamedTuple):
    """`inputs`: the processor's tensors, with (batch, length) ids, mask and token types; `labels`: (batch, length), UNLABELLED but where
    an answer stands."""

    inputs: dict[str, Any]
    labels: torch.Tensor


class Encoder:
    """Makes a model's inputs of rows.

    Args:
        processor: of the model, with its chat template. root: the folder that the rows' media paths are below.
        frames: decodes and samples videos; with a `FrameCache` each video is decoded once, whatever the number of epochs and stages.

    Raises:
        ValueError: the chat template drops or repeats an assistant's turn, so that nothing says what closes an answer.
    """

    def __init__(self, processor: Any, root: str | Path, frames: Frames) -> None:
        self.processor, self.root, self.frames = processor, Path(root), frames
        self.tokenizer = processor.tokenizer
        added = {token for token, text in self.tokenizer.added_tokens_decoder.items() if str(text) not in THOUGHT}
        self.special = frozenset(self.tokenizer.all_special_ids) | added
        self.alarms = [token for token, added in self.tokenizer.added_tokens_decoder.items() if str(added).startswith(ALARMS)]
        self.one_name = "SmolVLM" in type(processor).__name__  # seen in transformers 5.23: pixel_values of videos replace those of images
        self.closing = self._closing()

    def prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The tensors of the rows' prompts, as evaluation gives them to the model: they end where an answer starts, padded on the left.

        Raises:
            DataError: a prompt or an earlier turn spells a special token, a video or image cannot be shown, the processor refuses a row or
                the rows together, or a prompt has not each alarm token once; it names the rows.
        """
        for row in rows:
            self._require_plain(row)
        loaded = [self._load(number, row) for number, row in enumerate(rows)]
        self.tokenizer.padding_side = "left"
        mend = _SMALLER if len(rows) > 1 else "take it out of the data"
        names = "; ".join(_name(row) for row in rows)
        try:
            if self.one_name and any(row["videos"] for row in rows) and any(row["images"] for row in rows):
                raise ValueError(f"{type(self.processor).__name__} has one name for the pixels of images and of videos: not both at once")
            inputs = dict(model_inputs(self.processor, loaded))
        except (ValueError, IndexError, StopIteration) as error:  # the latter where a text spells a placeholder without a medium
            raise DataError(f"videosafety: the processor refuses {names}: {error}; {mend}") from error
        for row, ids in zip(rows, inputs["input_ids"], strict=True):
            if any((ids == token).sum() != 1 for token in self.alarms):
                raise DataError(
                    f"videosafety: the prompt of {_name(row)} does not hold each alarm token once: {self.tokenizer.decode(ids)!r:.200}"
                )
        return inputs

    def answer(self, text: str) -> list[int]:
        """The ids of an answer and of what closes it in the chat template. Tokenised apart from its prompt, as a model writes it.

        Raises:
            ValueError: the answer spells a special token, which would end a turn or stand for a medium.
        """
        return self._plain_ids("the answer", text) + self.closing

    def pairs(self, rows: Sequence[Row], answers: Sequence[str]) -> Encoded:
        """Prompts with their answers, padded on the right; only the answer's tokens are labelled, so earlier turns are context.

        Raises:
            DataError: as `prompts`, or an answer spells a special token.
        """
        ids = []
        for row, text in zip(rows, answers, strict=True):
            try:
                ids.append(self.answer(text))
            except ValueError as error:
                raise DataError(f"videosafety: {_name(row)}: {error}; take it out of the data") from error
        return append(self.prompts(rows), ids, pad=self.tokenizer.pad_token_id)

    def _require_plain(self, row: Row) -> None:
        """Refuse turns that would end themselves and forge the next: the chat template writes texts as they stand."""
        turns = {f"turn {number} of its history": turn["content"] for number, turn in enumerate(row["history"], 1)}
        for name, text in {**turns, "the prompt": row["prompt"]}.items():
            try:
                self._plain_ids(name, text.replace(VIDEO, " ").replace(IMAGE, " "))
            except ValueError as error:
                raise DataError(f"videosafety: {_name(row)}: {error}; take it out of the data") from error

    def _plain_ids(self, name: str, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if spelled := self.special.intersection(ids):
            raise ValueError(f"{name} {text[:60]!r} spells special token(s) {self.tokenizer.convert_ids_to_tokens(sorted(spelled))}")
        return ids

    def _load(self, number: int, row: Row) -> Loaded:
        videos, images = ([str(self.root / path) for path in row[key]] for key in ("videos", "images"))  # type: ignore[literal-required]
        request = Request(number, row["id"], _blocks(row), videos, list(images), {})
        try:
            return load(request, self.frames)
        except MediaError as error:
            raise DataError(f"videosafety: {_name(row)}: {error}; mend the file or take the row out") from error

    def _closing(self) -> list[int]:
        """What follows an answer. What stands before one is the generation prompt, which evaluation uses; some templates (that of
        LLaVA-OneVision) write something else before an answer that is there already."""
        asked = {"role": "user", "content": [{"type": "text", "text": "QUESTION"}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": _MARK}]}
        whole = self.processor.apply_chat_template([asked, said], tokenize=False)
        if whole.count(_MARK) != 1:
            raise ValueError(f"the chat template writes an answer {whole.count(_MARK)} times, where once is needed: {whole!r}")
        return self.tokenizer(whole.partition(_MARK)[2].rstrip("\n"), add_special_tokens=False)["input_ids"]


def append(prompts: dict[str, Any], answers: Sequence[Sequence[int]], pad: int) -> Encoded:
    """Prompts padded on either side, followed by answers: the same tensors with rows `prompt answer padding`.

    Tensors of another shape than the ids (pixels, grids) are passed on. Token types of answers are 0, text.
    """
    ids, mask = prompts["input_ids"], prompts["attention_mask"].bool()
    lengths = [int(row.sum()) + len(answer) for row, answer in zip(mask, answers, strict=True)]
    shape = (len(lengths), max(lengths))
    along = {
        key: value
        for key, value in prompts.items()
        if torch.is_tensor(value) and value.shape == ids.shape and not value.is_floating_point()
    }
    out = {key: value.new_full(shape, pad if key == "input_ids" else 0) for key, value in along.items()}
    labels = ids.new_full(shape, UNLABELLED)
    for i, answer in enumerate(answers):
        start, end = lengths[i] - len(answer), lengths[i]
        for key, value in along.items():
            out[key][i, :start] = value[i][mask[i]]
        labels[i, start:end] = out["input_ids"][i, start:end] = torch.as_tensor(answer, dtype=ids.dtype)
        out["attention_mask"][i, start:end] = 1
    return Encoded({**prompts, **out}, labels)


class SFTCollator:
    """Rows with completions to the batch of a Trainer: the model's inputs, `labels`, and `alarm_labels` (batch, 2) of 0, 1, UNLABELLED.

    weigh: what each token of an answer counts in the loss, which is then Σ weight · CE / Σ weight; adds `token_weights` (batch, length).
    """

    def __init__(self, encoder: Encoder, weigh: Weigh | None = None) -> None:
        self.encoder, self.weigh = encoder, weigh

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        inputs, labels = self.encoder.pairs(rows, [str(row["completion"]) for row in rows])
        batch = {**inputs, "labels": labels, "alarm_labels": alarm_labels(rows)}
        return batch if self.weigh is None else {**batch, "token_weights": self._weights(self.weigh, rows, labels)}

    def _weights(self, weigh: Weigh, rows: Sequence[Row], labels: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(labels.shape)
        for row, line, places in zip(rows, weights, labels != UNLABELLED, strict=True):
            ids = self.encoder.answer(str(row["completion"]))
            found = torch.tensor(list(weigh(row, ids, self.encoder.tokenizer)), dtype=torch.float32)
            if len(found) != len(ids) or not found.isfinite().all() or (found < 0).any():
                raise DataError(f"videosafety: {_name(row)}: token weights must be {len(ids)} finite numbers, none below 0, got {found}")
            line[places] = found
        return weights


def alarm_labels(rows: Sequence[Row]) -> torch.Tensor:
    """(batch, 2): visual and textual label of each row, UNLABELLED where it has none."""
    values = [[row[key] for key in LABELS] for row in rows]  # type: ignore[literal-required]
    return torch.tensor([[UNLABELLED if label is None else label for label in pair] for pair in values])


def _blocks(row: Row) -> list[dict[str, Any]]:
    """The prompt's messages with every content as blocks, since some processors take no bare text."""
    return [
        m if isinstance(m["content"], list) else {**m, "content": [{"type": "text", "text": m["content"]}]} for m in prompt_messages(row)
    ]


def _name(row: Row) -> str:
    return f"row {row['id']} of {row['source']}"
