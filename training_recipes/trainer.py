"""Supervised fine-tuning with alarm heads on transformers' own Trainer: each loss term by its own count, logits of answers alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from videosafety.hf_models.calibrate import auroc
from videosafety.training_recipes.collate import UNLABELLED
from videosafety.training_recipes.recipe import ParamGroups, Recipe

KINDS = ("visual", "textual")
# A row's part in the figures: summed cross-entropy and weight of its answer's tokens, then for each head loss, logit and label.
ANSWER, WEIGHT, LOSSES, LOGITS, LABELS = 0, 1, slice(2, 4), slice(4, 6), slice(6, 8)
FILLER = -1  # in all columns of a row that only makes processes have equally many; no label


class SFTTrainer(ParamGroups, Trainer):
    """L = CE / answer tokens + λ_visual · BCE / rows labelled so + λ_textual · BCE / rows labelled so (arXiv 2505.16643, section 4.2).

    Sums and counts go over the whole accumulation window and all processes, so that any split of a batch gives the same gradients. Works
    for alarm models and, with both λ at 0, for plain ones. Logs each term, the effective λ, and of both heads accuracy and AUROC.

    Args:
        recipe: what the stage says. alarm_loss_weights: λ of the visual and of the textual head. The rest as for Trainer; batches are those
            of `SFTCollator`, with `token_weights` (batch, length) where the answer's tokens weigh unequally.

    Raises:
        ValueError: a λ above 0 for a model without heads, a negative one, or as `ParamGroups`.
    """

    loss_is_scaled_for_ga = True  # transformers from 5.19 on: the loss is divided by the whole window's counts already

    def __init__(self, *args: Any, recipe: Recipe, alarm_loss_weights: Sequence[float] = (0.0, 0.0), **kwargs: Any) -> None:
        super().__init__(*args, recipe=recipe, **kwargs)
        self.model_accepts_loss_kwargs = True  # transformers before 5.19 then does not divide by the number of micro-batches
        if any(weight < 0 for weight in alarm_loss_weights):
            raise ValueError(f"loss weights of the alarm heads must not be negative, got {list(alarm_loss_weights)}")
        if any(alarm_loss_weights) and not hasattr(self.model, "alarm_heads"):
            raise ValueError("the model has no alarm heads to train: make one that has with `videosafety build-alarm`, or use stage sft")
        self.weights = torch.tensor([1.0, *alarm_loss_weights], device=self.args.device)
        self.seen: list[torch.Tensor] = []  # rows since the last log, (rows, 8) each
        self.shares: list[torch.Tensor] = []  # effective λ of each window since the last log

    # --- the loss ------------------------------------------------------------------------------------------------------------------

    def coefficients(self, items: torch.Tensor) -> torch.Tensor:
        """(3,) what the window's sums of CE and of the two BCEs are multiplied with. `items`: (3,) its answer tokens and labelled rows."""
        return torch.where(items > 0, self.weights / items.clamp(min=1e-9), 0.0)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor | None:
        """(3,) answer tokens (their weights, where given) and labelled rows of each kind: of the window, over all processes."""
        if not batch_samples:
            return None
        items = torch.stack([_items(batch).to(device) for batch in batch_samples]).sum(0)
        return self.accelerator.reduce(items, reduction="sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: torch.Tensor | int | None = None
    ) -> Any:
        """The loss of a micro-batch, which is a part of its window's: the parts add up. By the batch's own counts where none are given."""
        whole = isinstance(num_items_in_batch, torch.Tensor)
        items = num_items_in_batch if isinstance(num_items_in_batch, torch.Tensor) else _items(inputs).to(self.args.device)
        sums, rows, outputs = self.terms(model, inputs)
        factors = self.coefficients(items)
        loss = (sums * factors).sum() * (self.accelerator.num_processes if whole else 1)  # DDP takes the mean over processes
        if whole and model.training:
            self.seen.append(rows)
            share = factors * items
            self.shares.append(share[1:] / share[0].clamp(min=1e-9))
        return (loss, outputs) if return_outputs else loss

    def terms(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """(3,) summed CE and BCEs, which gradients flow through; (rows, 8) of figures, detached; the model's outputs. All in float32."""
        inputs = dict(inputs)
        labels, alarm = inputs.pop("labels"), inputs.pop("alarm_labels")
        weights = inputs.pop("token_weights", None)
        kept = functional.pad(labels[:, 1:] != UNLABELLED, (0, 1))  # the places that predict an answer's token
        with _logits_at(self.accelerator.unwrap_model(model), kept):
            outputs = model(**inputs, use_cache=False)
        targets = labels[:, 1:][kept[:, :-1]]
        losses = functional.cross_entropy(outputs.logits.float(), targets, reduction="none")
        weight = torch.ones_like(losses) if weights is None else weights[:, 1:][kept[:, :-1]].float()
        row = kept.nonzero()[:, 0]
        answer = losses.new_zeros(2, len(labels)).index_add(1, row, torch.stack([losses * weight, weight]))

        logits = getattr(outputs, "alarm_logits", None)
        known = torch.full_like(alarm, logits is not None, dtype=torch.bool) & (alarm != UNLABELLED)  # a plain model knows none
        logits = losses.new_zeros(alarm.shape) if logits is None else torch.where(known, logits.float(), 0.0)
        bce = functional.binary_cross_entropy_with_logits(logits, torch.where(known, alarm, 0).float(), reduction="none") * known
        rows = torch.cat([answer.T, bce, logits, torch.where(known, alarm, UNLABELLED)], dim=1)
        return torch.stack([answer[0].sum(), *bce.sum(0)]), rows.detach(), outputs

    # --- figures -------------------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As Trainer does, with the figures of the rows seen since the last log beside `loss`. Figures that there are none of are null in
        the log history; trackers are not told of them."""
        if "loss" in logs and self.seen:
            rows = self.accelerator.gather(self.accelerator.pad_across_processes(torch.cat(self.seen), pad_index=FILLER))
            shares = torch.stack(self.shares).mean(0).tolist()
            logs |= figures(rows[rows[:, LABELS.start] != FILLER]) | {
                f"lambda_{kind}": share for kind, share in zip(KINDS, shares, strict=True)
            }
            self.seen, self.shares = [], []
        absent: dict[str, Any] = {key: None for key, value in logs.items() if value is None}
        super().log({key: value for key, value in logs.items() if value is not None}, *args, **kwargs)
        self.state.log_history[-1] |= absent

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """One batch of held-out rows: keeps its rows' figures, without those that fill up the last batch of several processes."""
        with torch.no_grad(), self.compute_loss_context_manager():
            sums, rows, _ = self.terms(model, self._prepare_inputs(inputs))
        self.held_out.append(self.accelerator.gather_for_metrics(rows))
        return sums.sum(), None, None

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As Trainer does; the loss is that of training over all held-out rows at once, not a mean of batches."""
        self.held_out: list[torch.Tensor] = []
        done = super().evaluation_loop(dataloader, description, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        found = figures(torch.cat(self.held_out))
        terms = [found["loss_answer"], *(found[f"loss_{kind}"] for kind in KINDS)]
        found = {"loss": sum(w * term for w, term in zip(self.weights.tolist(), terms, strict=True) if term is not None)} | found
        metrics: dict[str, Any] = {**(done.metrics or {}), **{f"{prefix}_{name}": value for name, value in found.items()}}
        return done._replace(metrics=metrics)


def _items(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    answer = batch["labels"][:, 1:] != UNLABELLED
    tokens = answer.sum() if "token_weights" not in batch else (batch["token_weights"][:, 1:] * answer).sum()
    return torch.cat([tokens[None], (batch["alarm_labels"] != UNLABELLED).sum(0)]).float()


@contextlib.contextmanager
def _logits_at(model: Any, kept: torch.Tensor) -> Iterator[None]:
    """Inside, the language-model head sees the states at `kept` (batch, length) alone: logits are (places, vocabulary).

    Whatever the family's forward does around its head stays as it is, and all of it happens inside that forward, as DDP and FSDP need.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][kept], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def figures(rows: torch.Tensor) -> dict[str, float | None]:
    """Mean losses of answers and heads, and the heads' accuracy and AUROC, of (rows, 8); None where there is nothing to take one of."""
    answers, weight = rows[:, ANSWER].sum(), rows[:, WEIGHT].sum()
    found: dict[str, float | None] = {"loss_answer": float(answers / weight) if weight > 0 else None}
    for column, kind in enumerate(KINDS):
        loss, logit, label = (rows[:, part][:, column] for part in (LOSSES, LOGITS, LABELS))
        known = label != UNLABELLED
        loss, logit, label = loss[known], logit[known], label[known]
        found[f"loss_{kind}"] = float(loss.mean()) if len(loss) else None
        found[f"accuracy_{kind}"] = float(((logit > 0) == (label == 1)).float().mean()) if len(loss) else None
        found[f"auroc_{kind}"] = auroc(logit.tolist(), label.int().tolist()) if logit.isfinite().all() else None
    return found
