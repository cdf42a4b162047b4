"""Defects of the released training code that supervised stages must not repeat; numbers are those of the dossier's list of 33.

Those of rewards (15 to 19) are in test_rewards.py, those of GRPO in test_grpo_*.py, that of polarity (31) in test_recipe_data.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_cases import ALL, NAMES, batch_of, folder, gradients, media, recipe, row, rows, trainer, weights
from torch.nn import functional
from transformers import AutoProcessor

from videosafety.lmms_eval_tasks.inputs import model_inputs
from videosafety.lmms_eval_tasks.pipeline import Request, load
from videosafety.lmms_eval_tasks.video import FrameCache, Sampling
from videosafety.training_recipes.collate import UNLABELLED, Encoder, alarm_labels
from videosafety.training_recipes.data import DataError, prompt_messages, validate
from videosafety.training_recipes.recipe import encoder, load_model
from videosafety.training_recipes.schema import STAGES, Row
from videosafety.training_recipes.trainer import SFTTrainer


def one_step(out: Path, data: list[Row]) -> SFTTrainer:
    found = trainer(out, data=data, per_device_train_batch_size=1, gradient_accumulation_steps=len(data), learning_rate=1.0)
    found.train()
    return found


def test_defect_08_lambda_does_not_shrink_with_the_length_of_answers(tmp_path: Path) -> None:
    """There a mean BCE is added to a sum over tokens and divided by their number: λ is 0.1 / tokens. Here answers ten times as long
    leave the heads' gradient as it is, and it is that of 0.1 · mean BCE."""
    moved = []
    for words in (1, 10):
        data = [row(n, videos=["a.mp4"], visual_label=n % 2, textual_label=1, completion="No. " * words + "Done.") for n in range(2)]
        before = load_model(recipe())[0]
        after = one_step(tmp_path, data).model
        moved.append(after.alarm_heads.visual.weight.detach() - before.alarm_heads.visual.weight.detach())
    batch = batch_of(trainer(tmp_path), data)
    logits = before(**{key: value for key, value in batch.items() if "labels" not in key}).alarm_logits
    (0.1 * functional.binary_cross_entropy_with_logits(logits[:, 0], batch["alarm_labels"][:, 0].float())).backward()
    gradient = before.alarm_heads.visual.weight.grad
    assert gradient.abs().max() > 1e-3
    for found in moved:
        torch.testing.assert_close(found, -gradient, rtol=1e-3, atol=1e-5)


def test_defect_09_nothing_but_answers_is_counted(tmp_path: Path) -> None:
    """There four numbers of metadata a sample stand among the labels and count as tokens."""
    found = trainer(tmp_path)
    data = rows(4)
    batches = [batch_of(found, data[:1]), batch_of(found, data[1:])]
    answers = [found.data_collator.encoder.answer(str(line["completion"])) for line in data]  # type: ignore[attr-defined]
    items = found._get_num_items_in_batch(batches, torch.device("cpu"))
    assert items is not None
    assert items.tolist() == [sum(map(len, answers)), 3, 3]
    labels = [label for batch in batches for line in batch["labels"] for label in line.tolist() if label != UNLABELLED]
    assert labels == [token for answer in answers for token in answer]


def test_defect_11_vectors_do_not_start_where_gradients_explode(tmp_path: Path) -> None:
    """Zeros, as there, meet an RMSNorm whose slope at 0 is 1/sqrt(eps): their gradient is of another order than that of words."""
    sizes = {}
    for init in ("mean", "paper_init"):
        what = recipe(model=str(folder(init=init)))
        found = trainer(tmp_path, what)
        batch = batch_of(found, [row(n, videos=["a.mp4"]) for n in range(2)])
        found.compute_loss(found.model, batch).backward()
        grown = gradients(found.model)
        used = grown["model.language_model.embed_tokens.weight"].norm(dim=1)
        sizes[init] = float(grown["alarm_tokens.weight"].norm(dim=1).max() / used[used > 0].median())
    assert sizes["mean"] < 100  # a mean of random words is shorter than a word, so its slope is steeper; trained words are less alike
    assert sizes["paper_init"] > 5 * sizes["mean"]


@pytest.mark.parametrize("name", NAMES)
def test_defect_12_text_alone_uses_the_learned_vectors(name: str, tmp_path: Path) -> None:
    """There the ordinary, never trained row of the placeholder stands in where nothing is shown, in evaluation above all."""
    found = trainer(tmp_path, recipe(name))
    model, batch = found.model, batch_of(found, [row(1, textual_label=1)])
    loss = found.compute_loss(model, batch)
    loss.backward()
    assert (model.alarm_tokens.weight.grad.abs().sum(1) > 0).all()
    ids = model.alarm_tokens.ids
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] += 1
        assert torch.equal(found.compute_loss(model, batch), loss)
        model.alarm_tokens.weight += 1
        assert not torch.allclose(found.compute_loss(model, batch), loss)


HISTORY = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "I see."}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("history", [[], HISTORY], ids=["one turn", "two turns"])
def test_defect_13_and_22_a_prompt_is_the_same_in_training_and_evaluation(name: str, history: list[Any]) -> None:
    """There training puts the textual token into the first user turn and inference into the last, and stage 4 merges visual tokens
    otherwise than stages 1 to 3: here all stages encode by evaluation's code, tensor by tensor."""
    line = row(1, videos=["b.mp4"], history=history, reference="No.", completion=None)
    geometry = {"fps": 4.0, "max_frames": 3, "max_pixels": 28 * 28 * 4}
    processor = AutoProcessor.from_pretrained(folder(name), trust_remote_code=True)
    processor.tokenizer.padding_side = "left"
    blocks = [
        {**turn, "content": [{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]}
        for turn in prompt_messages(line)
    ]
    request = Request(0, "", blocks, [str(media() / "b.mp4")], [], {})
    frames = FrameCache(media() / "cache", Sampling(**geometry))
    expected = model_inputs(processor, [load(request, frames)])
    for stage in STAGES:
        what = recipe(name, stage=stage, train=["language_model"], **geometry)
        found = encoder(what, load_model(replace(what, train=[]))[1]).prompts([line])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), stage
    first = processor.apply_chat_template(blocks[:1], tokenize=False)
    assert "<|textual_alarm|>" in first[first.index("Look" if history else "What") :]


BOMB = "How do I build a bomb?"


@pytest.mark.parametrize("prompt", [BOMB, "Does this video contain harmful content?"])
def test_defect_14_labels_are_never_read_out_of_words(prompt: str) -> None:
    """There rows without labels get them by a regex over the user's words: a bomb becomes safe."""
    line = row(0, prompt=prompt, videos=["a.mp4"])
    with pytest.raises(DataError, match="never read out of the words"):
        validate([line], "at_sft")
    validate([line], "sft")
    assert alarm_labels([line]).tolist() == [[UNLABELLED, UNLABELLED]]


def test_defect_23_rows_without_labels_teach_the_heads_nothing(tmp_path: Path) -> None:
    """There general rows are labelled safe and safe."""
    found = trainer(tmp_path)
    found.compute_loss(found.model, batch_of(found, [row(0), row(1, videos=["a.mp4"])])).backward()
    assert all((value == 0).all() for key, value in gradients(found.model).items() if "alarm_heads" in key)


def test_defect_26_the_embedding_matrix_keeps_its_spare_rows(tmp_path: Path) -> None:
    """There it shrinks to the tokenizer's length, and the checkpoint fits its base no more."""
    found = one_step(tmp_path, rows(1))
    found.save_model(str(tmp_path / "out"))
    after = load_model(recipe(model=str(tmp_path / "out")))[0].get_input_embeddings().weight
    plain = load_model(recipe(alarm=False))[0].get_input_embeddings().weight
    assert len(found.processing_class.tokenizer) < len(plain)  # type: ignore[union-attr]
    assert after.shape == plain.shape


@pytest.mark.parametrize("name", NAMES)
def test_defect_27_rows_of_unlike_length_with_labels_make_a_batch(name: str, tmp_path: Path) -> None:
    """There the padding collator crashes as soon as a row has alarm labels."""
    found = trainer(tmp_path, recipe(name))
    data = [row(n, prompt="Why? " * (5 * n + 1), textual_label=n % 2, visual_label=0) for n in range(3)]
    batch = batch_of(found, data)
    assert batch["attention_mask"].sum(1).unique().numel() == 3
    assert batch["alarm_labels"].tolist() == [[0, 0], [0, 1], [0, 0]]
    for line, expected in zip(range(3), data, strict=True):
        answer = batch["input_ids"][line][batch["labels"][line] != UNLABELLED]
        assert answer.tolist() == found.data_collator.encoder.answer(str(expected["completion"]))  # type: ignore[attr-defined]
    assert found.compute_loss(found.model, batch).isfinite()


def test_defect_28_a_row_that_cannot_be_shown_stops_the_run_by_name(tmp_path: Path) -> None:
    """There any exception puts a random other row in its place."""
    root = tmp_path / "media"
    root.mkdir()
    (root / "broken.mp4").write_bytes(b"no video")
    what = recipe(data_root=str(root))
    with pytest.raises(DataError, match=r"row 7 of test: .*broken\.mp4.*take the row out"):
        trainer(tmp_path, what, [row(7, videos=["broken.mp4"], visual_label=0, textual_label=0)]).train()


@pytest.mark.parametrize("name", NAMES)
def test_defect_32_padding_and_closing_are_the_models_own(name: str, tmp_path: Path) -> None:
    """There the pad id of one tokenizer is written into the code."""
    found = trainer(tmp_path, recipe(name))
    encode: Encoder = found.data_collator.encoder  # type: ignore[attr-defined]
    batch = batch_of(found, [row(0), row(1, prompt="A much longer question than the other one.")])
    assert (batch["input_ids"][batch["attention_mask"] == 0] == encode.tokenizer.pad_token_id).all()
    last = [line[line != UNLABELLED][-1].item() for line in batch["labels"]]
    assert set(last) == {found.model.generation_config.eos_token_id}  # so that the trained model stops


@pytest.mark.parametrize(
    ("train", "rank"),
    [
        (["alarm_tokens"], 0),
        (["language_model"], 0),
        (["alarm_tokens", "alarm_heads"], 0),
        (ALL, 0),
        ([*ALL, "vision", "projector"], 0),
        (ALL, 2),
    ],
)
def test_defect_32_what_learns_is_what_the_optimizer_has(train: list[str], rank: int, tmp_path: Path) -> None:
    """There alarm vectors ask for gradients outside the optimizer. Frozen parts get no gradient and do not move."""
    data = [row(n, videos=["a.mp4"], visual_label=n, textual_label=1 - n) for n in range(2)]
    what = recipe(train=train, lora_rank=rank)
    found = trainer(tmp_path, what, data, per_device_train_batch_size=2)
    before = weights(found.model)
    learning = {key for key, value in found.model.named_parameters() if value.requires_grad}
    found.train()
    assert found.optimizer is not None
    held = {id(value) for group in found.optimizer.param_groups for value in group["params"]}
    assert held == {id(value) for key, value in found.model.named_parameters() if key in learning}
    for key, value in found.model.named_parameters():
        assert torch.equal(value, before[key]) or key in learning, key
        assert value.grad is None or key in learning, key
    moved = {key for key, value in found.model.named_parameters() if not torch.equal(value, before[key])}
    assert {part for part in train if any(part in key for key in moved)} >= set(train) & {"alarm_tokens", "alarm_heads", "language_model"}
    if "vision" in train:
        assert {"vision_model", "projector"} <= {part for key in moved for part in ("vision_model", "projector") if part in key}
