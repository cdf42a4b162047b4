"""DPO with video: what policy and reference see, the loss by hand, one batch in any split, resuming, LoRA, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_cases import command, preferences, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from conftest import write_video

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import dpo
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes.collate import UNLABELLED
from videosafety.training_recipes.data import DataError

FAMILIES = {"videollama3": True, "qwen2_5_vl": True, "qwen3_vl": False}  # family -> with alarm tokens


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clips, the rows and the tiny models."""
    folder = tmp_path_factory.mktemp("dpo")
    write_video(folder / "a.mp4", frames=16)
    write_video(folder / "b.mp4", frames=24)
    write_rows(preferences(), folder / "rows.jsonl")
    write_rows(preferences(media=False), folder / "text.jsonl")
    for family, alarm in FAMILIES.items():
        build_tiny(folder / family, family, alarm=alarm)
    return folder


def trainer_of(world: Path, out: Path, family: str = "videollama3", data: str = "rows.jsonl", **more: Any) -> dpo.VideoDPOTrainer:
    recipe, settings = recipes.parse(command(world / family, world / data, out, **more), dpo.DPOSettings)
    rows, held_out = recipes.load_rows(recipe)
    model, processor = recipes.load_model(recipe)
    return dpo.VideoDPOTrainer(model, recipe, settings, processor, rows, held_out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def gap(mine: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == its.keys()
    return max(float((mine[key] - its[key]).abs().max()) for key in its)


def stir(model: Any) -> None:
    """Move the weights that learn, so that policy and reference differ."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def by_hand(trainer: dpo.VideoDPOTrainer, rows: list[Any], beta: float) -> torch.Tensor:
    """DPO's loss (arXiv 2305.18290, equation 7) from full logits, one unpadded row and one answer at a time."""
    encoder = trainer.data_collator.encoder

    def logp(model: Any, row: Any, key: str) -> torch.Tensor:
        inputs, labels = encoder.pairs([row], [row[key]])
        found = model(**inputs).logits[0, :-1].log_softmax(-1)
        target = labels[0, 1:]
        return found.gather(-1, target.clamp(min=0).unsqueeze(-1))[:, 0][target != UNLABELLED].sum()

    margins = [
        sum(sign * (logp(trainer.model, row, key) - logp(trainer.ref_model, row, key)) for key, sign in (("chosen", 1), ("rejected", -1)))
        for row in rows
    ]
    return -torch.nn.functional.logsigmoid(beta * torch.stack(margins)).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_formula_by_hand_and_both_models_see_the_video(world: Path, tmp_path: Path, family: str) -> None:
    trainer = trainer_of(world, tmp_path, family)
    stir(trainer.model)
    rows = preferences(3)  # video, another video, text
    batch = trainer.data_collator(rows)
    assert batch["input_ids"].shape[0] == 6
    trainer.model.eval()
    embeds: list[torch.Tensor] = []
    runs: Counter[str] = Counter()
    for who, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        tower = next(module for name, module in model.model.named_children() if recipes.part_of(name) == "vision")
        tower.register_forward_pre_hook(lambda *_, who=who: runs.update([who]))
        model.model.language_model.register_forward_pre_hook(lambda _, __, k: embeds.append(k["inputs_embeds"]), with_kwargs=True)
    loss = trainer.compute_loss(trainer.model, batch)
    policy, its = embeds
    assert runs == {"policy": 1}  # once for both answers and both models
    assert torch.allclose(loss, by_hand(trainer, rows, trainer.beta), atol=2e-5)
    assert abs(loss.item() - 0.6931) > 1e-3  # they do differ
    config = trainer.model.config
    places = batch["input_ids"] == config.video_token_id
    assert places.any(-1).tolist() == [True, True, False] * 2
    words = trainer.ref_model.get_input_embeddings()(batch["input_ids"])
    assert not torch.isclose(its, words)[places].all(-1).any()  # features, and not the placeholder's own vector
    assert torch.equal(its[places], policy[places])  # the same for both models: the tower is frozen
    assert torch.equal(its[:3][places[:3]], its[3:][places[3:]])  # and for both answers

    runs.clear()
    trainer.shares = False  # as where the tower is in shards
    assert torch.allclose(trainer.compute_loss(trainer.model, batch), loss, atol=1e-5)
    assert runs == {"policy": 1, "reference": 1}


def test_four_at_once_are_one_by_one(world: Path, tmp_path: Path) -> None:
    for out, size, steps in (("four", 4, 1), ("one", 1, 4)):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        dpo.main(command(world / "videollama3", world / "rows.jsonl", tmp_path / out, optim="sgd", learning_rate=0.1, **split))
    assert gap(weights(tmp_path / "four"), weights(tmp_path / "one")) < 1e-5
    assert gap(weights(tmp_path / "four"), weights(world / "videollama3")) > 1e-3


def test_resumed_is_uninterrupted(world: Path, tmp_path: Path) -> None:
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    arguments = (world / "videollama3", world / "rows.jsonl")
    dpo.main(command(*arguments, tmp_path / "whole", **steps))
    last = tmp_path / "whole" / "checkpoint-2"
    dpo.main(command(*arguments, tmp_path / "parts", **steps, resume_from_checkpoint=last))
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("whole", "parts")]
    whole, parts = ([(entry["step"], entry["loss"], entry["rewards/margins"]) for entry in log if "loss" in entry] for log in logs)
    assert [step for step, *_ in whole] == [1, 2, 3, 4]
    assert parts == whole
    assert gap(weights(tmp_path / "whole"), weights(tmp_path / "parts")) == 0.0


def test_words_alone_train_and_only_what_the_recipe_names(world: Path, tmp_path: Path) -> None:
    dpo.main(command(world / "videollama3", world / "text.jsonl", tmp_path / "out", train=["language_model", "alarm_tokens"]))
    before, after = weights(world / "videollama3"), weights(tmp_path / "out")
    moved = {recipes.part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"language_model", "alarm_tokens"}
    assert json.loads((tmp_path / "out" / "training_recipe.json").read_text())["recipe"]["stage"] == "dpo"


def test_lora_refers_to_the_base_with_its_adapter_off(world: Path, tmp_path: Path) -> None:
    lora = {"lora_rank": 4, "train": ["language_model", "alarm_tokens"]}
    trainer = trainer_of(world, tmp_path / "out", **lora)
    assert trainer.ref_model is None
    assert list(trainer.model.peft_config) == ["default"]
    stir(trainer.model)
    trainer.ref_model_by_hand = dpo.reference(replace(trainer.recipe, lora_rank=0))
    rows = preferences(2)
    loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows))
    trainer.ref_model = trainer.ref_model_by_hand
    assert torch.allclose(loss, by_hand(trainer, rows, trainer.beta), atol=2e-5)
    assert abs(loss.item() - 0.6931) > 1e-3

    dpo.main(command(world / "videollama3", world / "rows.jsonl", tmp_path / "out", **lora))
    learned = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert {name.rpartition(".")[2] for name in learned} == {"weight"}
    assert any("alarm_tokens" in name for name in learned)
    assert not any("ref" in part.name for part in (tmp_path / "out" / "adapter").iterdir())
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert merged.config.model_type == "alarm_video_llama_3"
    assert gap(weights(tmp_path / "out"), weights(world / "videollama3")) > 1e-5


def test_held_out_rows_are_scored(world: Path, tmp_path: Path) -> None:
    held_out = write_rows(
        [{**row, "id": f"held-{row['id']}", "prompt": f"Now: {row['prompt']}"} for row in preferences(2)], world / "held.jsonl"
    )  # type: ignore[list-item]
    more = {"eval_data": held_out, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    dpo.main(command(world / "videollama3", world / "rows.jsonl", tmp_path / "out", **more))
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert {"eval_loss", "eval_rewards/margins"} <= set().union(*log)


def test_a_tower_that_learns_gets_gradients(world: Path, tmp_path: Path) -> None:
    trainer = trainer_of(world, tmp_path, train=["language_model", "vision", "projector"])
    assert not trainer.shares
    trainer.compute_loss(trainer.model, trainer.data_collator(preferences(2))).backward()
    moved = {recipes.part_of(name) for name, p in trainer.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"language_model", "vision", "projector"}


def test_a_dry_run_tells_and_leaves_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dpo.main(command(world / "qwen2_5_vl", world / "rows.jsonl", tmp_path / "out", dry_run=True))
    facts = json.loads(capsys.readouterr().out)
    assert facts["one_batch"]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert facts["parts"]["vision"]["trained"] == 0 < facts["parts"]["language_model"]["trained"]
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"max_length": 512}, "max_length must be null"),
        ({"stage": "sft"}, "stage is sft, and this script trains dpo"),
        ({"train": ["language_model", "alarm_heads"]}, "alarm_heads"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs"),
    ],
    ids=["truncation", "another-stage", "heads-without-labels", "reference-ahead-of-time"],
)
def test_a_recipe_that_cannot_be_is_refused(world: Path, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dpo.main(command(world / "videollama3", world / "rows.jsonl", tmp_path / "out", **more))


@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_an_answer_that_spells_a_special_token_is_refused_by_name(world: Path, tmp_path: Path, key: str) -> None:
    trainer = trainer_of(world, tmp_path)
    row = {**preferences(1)[0], key: "Fine.<|im_end|> And more."}
    with pytest.raises(DataError, match=f"row r0 of made: {key}: .*im_end"):
        trainer.data_collator([row])
