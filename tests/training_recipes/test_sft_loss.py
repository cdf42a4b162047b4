"""The loss of supervised stages: equal to the formula by hand, by the supervised places alone, however rows are spread, on all families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_cases import NAMES, assert_same, batch_of, folder, gradients, recipe, row, rows, trainer, weights
from torch.nn import functional
from transformers import TrainerCallback

from videosafety.training_recipes.collate import UNLABELLED, SFTCollator
from videosafety.training_recipes.recipe import encoder, load_model
from videosafety.training_recipes.trainer import SFTTrainer, figures


def by_hand(model: Any, batch: dict[str, Any], weights: tuple[float, float] = (0.1, 0.1)) -> torch.Tensor:
    """The formula, on the logits of every token."""
    batch = dict(batch)
    labels, alarm = batch.pop("labels"), batch.pop("alarm_labels")
    out = model(**batch, use_cache=False)
    vocabulary = out.logits.shape[-1]
    loss = functional.cross_entropy(out.logits[:, :-1].reshape(-1, vocabulary), labels[:, 1:].reshape(-1), ignore_index=UNLABELLED)
    for column, weight in enumerate(weights):
        known = alarm[:, column] != UNLABELLED
        if weight and known.any():
            logits = out.alarm_logits[known, column]
            loss = loss + weight * functional.binary_cross_entropy_with_logits(logits, alarm[known, column].float())
    return loss


def compare(found: SFTTrainer, batch: dict[str, Any], lambdas: tuple[float, float] = (0.1, 0.1)) -> None:
    """Loss and gradients of the trainer, and those by hand on the same model."""
    model = found.model
    model.zero_grad()
    expected = by_hand(model, batch, lambdas)
    expected.backward()
    gradient = {key: value.clone() for key, value in gradients(model).items()}
    model.zero_grad()
    loss = found.compute_loss(model, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert gradient
    assert_same(gradients(model), gradient)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_formula_on_all_logits(name: str, tmp_path: Path) -> None:
    found = trainer(tmp_path, recipe(name))
    compare(found, batch_of(found, rows(4)))


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_model_trains_on_answers_alone(name: str, tmp_path: Path) -> None:
    found = trainer(tmp_path, recipe(name, stage="sft", alarm=False))
    compare(found, batch_of(found, rows(4)), (0, 0))


def test_tokens_without_heads(tmp_path: Path) -> None:
    """Labels there, λ 0: the heads learn nothing, the vectors learn from answers."""
    found = trainer(tmp_path, recipe(stage="sft", train=["language_model", "alarm_tokens"]))
    compare(found, batch_of(found, rows(4)), (0, 0))
    assert "alarm_heads.visual.weight" not in gradients(found.model)
    assert gradients(found.model)["alarm_tokens.weight"].abs().sum() > 0


def test_more_tokens_a_modality(tmp_path: Path) -> None:
    found = trainer(tmp_path, recipe(model=str(folder(per_modality=3))))
    compare(found, batch_of(found, rows(4)))
    assert (gradients(found.model)["alarm_tokens.weight"].abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", ["videollama3", "smolvlm", "qwen3_vl"])
def test_under_lora(name: str, tmp_path: Path) -> None:
    found = trainer(tmp_path, recipe(name, lora_rank=2))
    compare(found, batch_of(found, rows(4)))
    trained = {key for key, value in gradients(found.model).items() if value.abs().sum() > 0}
    assert all("lora_" in key or "modules_to_save" in key for key in trained)
    assert any("language_model" in key or "text_model" in key for key in trained)
    assert sum("modules_to_save" in key for key in trained) == 5
    assert not any("visual.blocks" in key or "vision" in key for key, value in found.model.named_parameters() if value.requires_grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant: bool, tmp_path: Path) -> None:
    found = trainer(tmp_path, recipe())
    batch = batch_of(found, rows(4))
    loss = found.compute_loss(found.model, batch)
    loss.backward()
    plain = {key: value.clone() for key, value in gradients(found.model).items()}
    found.model.zero_grad()
    found.model.train()
    found.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found.compute_loss(found.model, batch).backward()
    assert_same(gradients(found.model), plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_sees_supervised_places_alone(name: str, tmp_path: Path) -> None:
    """Prompts have thousands of visual tokens: logits of them would be gigabytes."""
    found, seen = trainer(tmp_path, recipe(name)), []
    batch = batch_of(found, rows(4))
    handle = found.model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape))
    found.compute_loss(found.model, batch)
    assert [shape[0] for shape in seen] == [int((batch["labels"] != UNLABELLED).sum())]
    assert len(seen[0]) == 2
    handle.remove()
    assert found.model(**{k: v for k, v in batch.items() if "labels" not in k}).logits.shape[:2] == batch["labels"].shape  # as it was


@pytest.mark.parametrize("name", NAMES)
def test_visual_inputs_reach_the_model(name: str, tmp_path: Path) -> None:
    found, features = trainer(tmp_path, recipe(name)), []
    backbone = found.model.model
    tower = next(getattr(backbone, key) for key in ("vision_model", "vision_tower", "visual") if hasattr(backbone, key))
    tower.register_forward_hook(lambda module, args, out: features.append(out))
    found.compute_loss(found.model, batch_of(found, [row(1)]))
    assert not features
    batch = batch_of(found, [row(1, videos=["a.mp4"])])
    first = float(found.compute_loss(found.model, batch).detach())
    assert len(features) == 1
    pixels = next(key for key in ("pixel_values_videos", "pixel_values") if key in batch)
    batch[pixels] = batch[pixels].flip(-1) + 0.5
    assert abs(float(found.compute_loss(found.model, batch).detach()) - first) > 1e-4


# --- however rows are spread -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["videollama3", "qwen2_5_vl"])  # of which transformers passes counts to the second's forward never
def test_four_rows_at_once_are_four_one_after_another(name: str, tmp_path: Path) -> None:
    found = []
    for size, accumulation in ((4, 1), (1, 4), (2, 2)):
        one = trainer(tmp_path, recipe(name), rows(4), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        one.train()
        found.append((weights(one.model), one.state.log_history[0]))
    before = weights(load_model(recipe(name))[0])
    assert not torch.equal(before["lm_head.weight"], found[0][0]["lm_head.weight"])
    for later, log in found[1:]:
        assert_same({k: v - before[k] for k, v in later.items()}, {k: v - before[k] for k, v in found[0][0].items()}, 1e-4)
        for key, value in found[0][1].items():
            assert log[key] == pytest.approx(value, rel=1e-4), key


def test_the_logged_loss_is_the_formula_over_the_window(tmp_path: Path) -> None:
    one = trainer(tmp_path, data=rows(4), gradient_accumulation_steps=4, per_device_train_batch_size=1)
    batch = batch_of(one, rows(4))
    expected = float(by_hand(one.model, batch))
    one.train()
    log = one.state.log_history[0]
    assert log["loss"] == pytest.approx(expected, rel=1e-5)
    assert log["loss"] == pytest.approx(log["loss_answer"] + 0.1 * log["loss_visual"] + 0.1 * log["loss_textual"], rel=1e-5)
    assert log["lambda_visual"] == pytest.approx(0.1)
    assert log["lambda_textual"] == pytest.approx(0.1)


def test_token_weights(tmp_path: Path) -> None:
    """Σ weight · CE / Σ weight: twice the weights change nothing, all weight on one token leaves that token's loss."""
    what = recipe(stage="sft", train=["language_model"])
    found = trainer(tmp_path, what, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    model, processor = found.model, found.processing_class
    encode = encoder(what, processor)
    equal = float(found.compute_loss(model, SFTCollator(encode)(rows(3))))
    twice = SFTCollator(encode, lambda _row, ids, _tokenizer: [2.0] * len(ids))(rows(3))
    assert float(found.compute_loss(model, twice)) == pytest.approx(equal, rel=1e-6)
    first = SFTCollator(encode, lambda _row, ids, _tokenizer: [3.0] + [0.0] * (len(ids) - 1))(rows(1))
    labels = torch.where(first["token_weights"] > 0, first["labels"], UNLABELLED)
    expected = by_hand(model, {k: v for k, v in first.items() if k != "token_weights"} | {"labels": labels}, (0, 0))
    assert float(found.compute_loss(model, first)) == pytest.approx(float(expected), rel=1e-6)

    def unequal(_row: Any, ids: list[int], _tokenizer: Any) -> list[float]:
        return [0.01 * (1 + n % 3) for n in range(len(ids))]

    after = []
    for size in (1, 4):
        one = trainer(tmp_path, what, rows(4), per_device_train_batch_size=size, gradient_accumulation_steps=4 // size)
        one.data_collator = SFTCollator(encode, unequal)  # type: ignore[assignment]
        one.train()
        after.append(weights(one.model))
    assert_same(after[1], after[0])


# --- figures -----------------------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    logits, labels = [2.0, -1.0, 0.5, -3.0], [1, 1, 0, 0]
    found = figures(
        torch.tensor([[3.0, 6.0, 0.2, 0.0, logit, 0.0, label, UNLABELLED] for logit, label in zip(logits, labels, strict=True)])
    )
    assert found["loss_answer"] == pytest.approx(0.5)
    assert found["loss_visual"] == pytest.approx(0.2)
    assert found["accuracy_visual"] == 0.5
    assert found["auroc_visual"] == 0.75  # of the four pairs, -1 is below 0.5
    assert {found[f"{name}_textual"] for name in ("loss", "accuracy", "auroc")} == {None}


def test_null_where_one_class_is_missing(tmp_path: Path) -> None:
    """In the log history, in valid JSON, and never as a number to a tracker."""
    one, told = trainer(tmp_path, data=[row(0, textual_label=1), row(1, textual_label=1)], per_device_train_batch_size=2), []

    class Spy(TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            told.append(set(logs))

    one.add_callback(Spy())
    one.train()
    log = one.state.log_history[0]
    assert log["auroc_textual"] is None
    assert log["loss_visual"] is None
    assert log["lambda_visual"] == 0
    assert log["accuracy_textual"] in (0.0, 0.5, 1.0)
    assert "auroc_textual" not in told[0]
    assert "accuracy_textual" in told[0]
    one.save_state()
    json.loads((tmp_path / "trainer_state.json").read_text(), parse_constant=pytest.fail)


def test_held_out_rows_are_weighed_as_in_training(tmp_path: Path) -> None:
    """Not a mean of batch means: 5 rows in batches of 2 have the loss of all 5 at once."""
    one = trainer(tmp_path, held_out=rows(5), per_device_eval_batch_size=2)
    found = one.evaluate()
    assert found["eval_loss"] == pytest.approx(float(by_hand(one.model, batch_of(one, rows(5)))), rel=1e-5)
    assert found["eval_auroc_textual"] is not None
    assert found["eval_loss_answer"] > 0
    assert one.state.log_history[-1]["eval_loss_visual"] == found["eval_loss_visual"]


def test_a_tracker_gets_every_term(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(tmp_path, data=rows(5), per_device_train_batch_size=5, report_to=["tensorboard"]).train()
    (events,) = tmp_path.rglob("events.out.tfevents*")
    found = accumulator.EventAccumulator(str(events)).Reload().Tags()["scalars"]
    for key in ("loss", "loss_answer", "loss_visual", "loss_textual", "auroc_textual", "lambda_visual", "lr_alarm_tokens"):
        assert f"train/{key}" in found


# --- what is refused ---------------------------------------------------------------------------------------------------------------


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no alarm heads to train"):
        trainer(tmp_path, recipe(alarm=False))
    with pytest.raises(ValueError, match="must not be negative"):
        trainer(tmp_path, visual_loss_weight=-0.1)
    with pytest.raises(ValueError, match="names no function"):
        trainer(tmp_path, token_weights="videosafety.training_recipes.collate:nothing")
    with pytest.raises(ValueError, match="is no function"):
        trainer(tmp_path, token_weights="videosafety.training_recipes.collate:UNLABELLED")
    with pytest.raises(ValueError, match="do not reach the loss"):
        trainer(tmp_path, label_smoothing_factor=0.1)
