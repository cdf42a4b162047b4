"""GRPO's passes through the model: what is sampled is scored, shared work changes nothing, visuals reach policy and reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpo_cases as cases
import pytest
import torch

from videosafety.training_recipes import grpo_trainer
from videosafety.training_recipes.collate import append
from videosafety.training_recipes.prefix import Prompt, lay_out, packs
from videosafety.training_recipes.shared_video import learns

TOLERANCE = 1e-5


def sampled(trainer: Any) -> dict[str, Any]:
    """One generation batch of the trainer, with the raw logits that the answers were sampled from, as `logps` (rows, tokens)."""
    model, heard = trainer.model, []
    generate = model.generate

    def listen(**inputs: Any) -> torch.Tensor:
        out = generate(**inputs, return_dict_in_generate=True, output_logits=True)
        heard.append(torch.stack(out.logits, 1).log_softmax(-1))
        return out.sequences

    model.generate = listen
    try:
        batch = trainer._generate_and_score_completions([row for row in trainer.rows for _ in range(trainer.num_generations)])
    finally:
        del model.generate
    ids = batch["completion_ids"]
    return batch | {"logps": heard[0][:, : ids.shape[1]].gather(-1, ids[..., None])[..., 0]}


def scored(trainer: Any, batch: dict[str, Any], model: Any = None) -> torch.Tensor:
    trainer._prompts = batch["prompts"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    return trainer._get_per_token_logps_and_entropies(model or trainer.model, ids, mask, batch["completion_ids"].shape[1])[0]


def by_hand(trainer: Any, batch: dict[str, Any], model: Any) -> torch.Tensor:
    """Log-probabilities from the model's own forward, one row at a time, with pixels, and without anything of ours but the encoder."""
    found = torch.zeros(batch["completion_ids"].shape)
    rows = [row for row in trainer.rows for _ in range(trainer.num_generations)]
    for n, row in enumerate(rows):
        answer = batch["completion_ids"][n][batch["completion_mask"][n].bool()]
        inputs, labels = append(trainer.encoder.prompts([trainer.asked(row)]), [answer.tolist()], pad=0)
        logits = type(model).forward(model, **inputs).logits[0, :-1].log_softmax(-1)
        at = (labels[0, 1:] != -100).nonzero()[:, 0]
        found[n, : len(answer)] = logits[at, answer]
    return found


@pytest.mark.parametrize("family", cases.FAMILIES_HERE)
def test_sampling_and_scoring_agree(family: str, tmp_path: Path) -> None:
    trainer = cases.trainer(tmp_path, cases.rows(3), family=family, per_device_train_batch_size=9)
    batch = sampled(trainer)
    mask = batch["completion_mask"].bool()
    assert mask.sum() > 20
    with torch.no_grad():
        hand = by_hand(trainer, batch, trainer.model)
        assert (scored(trainer, batch) - batch["logps"])[mask].abs().max() <= TOLERANCE
        assert (hand - batch["logps"])[mask].abs().max() <= TOLERANCE
        reference = by_hand(trainer, batch, trainer.ref_model)
    assert (batch["ref_per_token_logps"] - reference)[mask].abs().max() <= TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["videollama3", "qwen2_5_vl", "qwen3_vl"])
def test_packed_answers_score_as_rows(family: str, attention: str, tmp_path: Path) -> None:
    """Log-probabilities and the gradient of every weight."""
    trainer = cases.trainer(tmp_path, cases.rows(3), family=family, recipe_more={"attn_implementation": attention})
    batch = sampled(trainer)
    batch["completion_mask"][4, 2:] = 0  # answers of unlike length
    batch["completion_mask"][1] = 0  # and one that does not count
    found = []
    for packed in (True, False):
        trainer._packs = packed
        trainer.model.zero_grad()
        logps = scored(trainer, batch)
        (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
        found.append((logps, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}))
    (one, gradients), (other, expected) = found
    assert packs(trainer.model)
    assert (one - other).abs().max() <= TOLERANCE
    assert not one[1].any()
    assert gradients.keys() == expected.keys()
    assert len(expected) > 10
    for name, value in expected.items():
        assert (gradients[name] - value).abs().max() <= TOLERANCE * value.abs().max().clamp(min=1), name


@pytest.mark.parametrize(("implementation", "layers", "expected"), [
    ("sdpa", ["full_attention"], True),
    ("eager", None, True),
    ("flash_attention_2", ["full_attention"], False),
    ("flex_attention", ["full_attention"], False),
    ("sdpa", ["full_attention", "sliding_attention"], False),
])  # fmt: skip
def test_what_is_packed(implementation: str, layers: list[str] | None, expected: bool) -> None:
    class Config:
        _attn_implementation, layer_types = implementation, layers

        def get_text_config(self) -> Config:
            return self

    class Model:
        config = Config()

    assert packs(Model()) is expected


def test_a_prompt_with_one_answer_is_a_row() -> None:
    prompt = Prompt(torch.tensor([5, 6, 7]), torch.tensor([[0, 1, 2]]), {})
    layout = lay_out([(prompt, [(0, torch.tensor([8, 9]))])], pad=0, device=torch.device("cpu"))
    assert layout.inputs["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert layout.inputs["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert layout.inputs["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert (layout.places[1].tolist(), layout.targets.tolist()) == ([2, 3], [8, 9])


def test_answers_do_not_see_each_other() -> None:
    prompt = Prompt(torch.tensor([5, 6, 7]), torch.tensor([[0, 1, 4]]), {})
    answers = [(3, torch.tensor([8, 9])), (1, torch.tensor([10]))]
    layout = lay_out([(prompt, answers)], pad=0, device=torch.device("cpu"))
    assert layout.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 7]]
    assert layout.inputs["position_ids"].tolist() == [[0, 1, 4, 5, 4]]
    assert layout.inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert [part.tolist() for part in layout.answers] == [[3, 3, 1], [0, 1, 0]]


def test_a_tower_that_learns_is_seen_anew_with_gradients(tmp_path: Path) -> None:
    """Nothing is kept then; log-probabilities are the same, and the tower's gradients are those of its own forward."""
    trainer = cases.trainer(tmp_path, cases.rows(1), train=["language_model", "projector", "vision"], per_device_train_batch_size=3)
    frozen = cases.trainer(tmp_path, cases.rows(1), per_device_train_batch_size=3)
    assert learns(trainer.model)
    assert not learns(frozen.model)
    batch = sampled(trainer)
    assert all(prompt.seen is None for prompt in batch["prompts"])
    assert all(prompt.seen and not prompt.inputs for prompt in sampled(frozen)["prompts"])
    logps = scored(trainer, batch)
    logps.sum().backward()
    mine = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    by_hand(trainer, batch, trainer.model).sum().backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert any("vision_model" in name for name in mine)
    for name in mine.keys() & expected.keys():
        assert (mine[name] - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max().clamp(min=1), name


def test_visuals_reach_policy_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy on both backbones; and without the features, scores are others."""
    trainer = cases.trainer(tmp_path, cases.rows(2))
    heard: dict[str, list[Any]] = {"policy": [], "reference": []}
    for name, model in {"policy": trainer.model, "reference": trainer.ref_model}.items():
        model.base_model.register_forward_pre_hook(lambda m, a, k, name=name: heard[name].append(k), with_kwargs=True)
    batch = sampled(trainer)
    trainer._compute_loss(trainer.model, batch)
    for name, calls in heard.items():
        visual = [call["mm_encoder_outputs"]["video"].pooler_output[0] for call in calls if call.get("mm_encoder_outputs")]
        assert visual, name
        assert all(len(features) > 0 for features in visual), name
    logps = scored(trainer, batch)
    monkeypatch.setattr(grpo_trainer, "join", lambda seen: {})
    assert (scored(trainer, batch) - logps).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["videollama3", "qwen3_vl", "llava_onevision"])
def test_each_video_is_decoded_and_seen_once(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation batch of four prompts, three of them with one of two videos; two updates from it."""
    made = cases.rows(4)
    trainer = cases.trainer(
        tmp_path, made, family=family, per_device_train_batch_size=6, gradient_accumulation_steps=2, num_iterations=2, max_steps=2
    )
    trainer.encoder.frames.store.folder = tmp_path / "frames"
    seen: list[str] = []
    for name, model in {"policy": trainer.model, "reference": trainer.ref_model}.items():
        tower = next(m for n, m in model.named_modules() if n.endswith(("vision_model", "vision_tower", "visual")))
        tower.register_forward_hook(lambda *_, name=name: seen.append(name))
    encoded: list[Any] = []
    prompts = trainer.encoder.prompts
    monkeypatch.setattr(trainer.encoder, "prompts", lambda rows: encoded.append(rows) or prompts(rows))
    trainer.train()
    assert len(encoded) == 4
    assert trainer.encoder.frames.decodes == 2
    assert seen == ["policy"] * 2
