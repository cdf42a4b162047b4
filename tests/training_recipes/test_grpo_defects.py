"""Defects of the released GRPO code (facts of its source at 7589dea), each by its number: none of them is here.

15 to 18, which are the rewards', are in test_rewards.py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import grpo_cases as cases
import pytest
import torch
from trl.trainer import utils

from videosafety.training_recipes import grpo
from videosafety.training_recipes.collate import SFTCollator


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two steps on four rows in one micro-batch each (one video twice, a still one, one row of text), and what every part was given."""
    made = cases.rows(4, videos=[["a.mp4"], ["still.mp4"], [], ["a.mp4"]])
    trainer = cases.trainer(tmp_path_factory.mktemp("out"), made, per_device_train_batch_size=12, max_steps=2, num_iterations=2)
    found: dict[str, Any] = {"trainer": trainer, "policy": [], "reference": [], "tower": [], "projected": []}

    def hear(name: str, module: Any, args: Any, kwargs: Any) -> None:
        found[name].append(kwargs)

    for name, model in {"policy": trainer.model, "reference": trainer.ref_model}.items():
        model.base_model.register_forward_pre_hook(functools.partial(hear, name), with_kwargs=True)
        model.base_model.vision_model.register_forward_pre_hook(functools.partial(hear, "tower"), with_kwargs=True)
    apply = utils._ChunkedLogProbFunction.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils._ChunkedLogProbFunction, "apply", lambda h, *a: (found["projected"].append(len(h)), apply(h, *a))[1])
        leave_out = trainer._leave_out
        patch.setattr(trainer, "_leave_out", lambda out: found.setdefault("batch", leave_out(out)))
        trainer.train()
    found["scoring"] = [call for name in ("policy", "reference") for call in found[name] if "use_cache" in call and not call["use_cache"]]
    found["prefill"] = [call for call in found["policy"] if call.get("use_cache") and call["input_ids"].shape[1] > 1]
    return found


def test_defect_02_prompt_and_video_are_not_dropped(heard: dict[str, Any]) -> None:
    """Sampling starts from every prompt, with its video."""
    (call,) = heard["prefill"]
    videos = (call["input_ids"] == heard["trainer"].model.config.video_token_id).sum(1)
    assert (videos > 0).int().sum() == 3
    assert len(call["mm_encoder_outputs"]["video"].pooler_output[0]) == videos.sum()


def test_defect_03_masks_fit_prompts_and_answers(heard: dict[str, Any]) -> None:
    for call in heard["scoring"]:
        rows, length = call["input_ids"].shape
        assert call["attention_mask"].shape in ((rows, length), (rows, 1, length, length))


def test_defects_04_05_visual_tensors_are_not_repeated(heard: dict[str, Any]) -> None:
    """As many features as places for them, in every pass: one for each prompt, however many answers it has."""
    assert len(heard["scoring"]) >= 4
    for call in heard["scoring"]:
        places = int((call["input_ids"] == heard["trainer"].model.config.video_token_id).sum())
        given = call["mm_encoder_outputs"].get("video")
        assert places == (len(given.pooler_output[0]) if given else 0)


def test_defect_06_compression_is_the_same_in_all_passes_of_a_batch(heard: dict[str, Any]) -> None:
    """The still video keeps fewer tokens than it has patches for, in sampling and in scoring, beside another of full length."""
    prompts = {id(prompt): prompt for prompt in heard["batch"]["prompts"]}.values()
    kept = sorted(len(prompt.seen["video"].pooled) for prompt in prompts if prompt.seen)
    assert kept[0] < kept[1] == kept[2]
    video = heard["trainer"].model.config.video_token_id
    told = [sorted((call["input_ids"] == video).sum(1).tolist()) for call in (*heard["prefill"], *heard["scoring"])]
    assert all(counts[-1] == kept[-1] for counts in told)


def test_defect_07_a_step_on_video_completes_and_learns(heard: dict[str, Any]) -> None:
    log = heard["trainer"].state.log_history
    assert [entry["step"] for entry in log[:2]] == [1, 2]
    assert log[0]["grad_norm"] > 0
    assert log[1]["kl"] > 0


def test_defects_19_20_rows_of_a_batch_are_their_own(heard: dict[str, Any]) -> None:
    """Four prompts in a micro-batch, with and without video: each answer is scored behind its own prompt. (Problem types of their own:
    test_rewards_get_the_columns_that_they_read.)"""
    batch, trainer = heard["batch"], heard["trainer"]
    for n, prompt in enumerate(batch["prompts"]):
        assert batch["prompt_ids"][n][batch["prompt_mask"][n].bool()].tolist() == prompt.ids.tolist()
    assert len({id(prompt) for prompt in batch["prompts"]}) == 4
    assert len(batch["completion_ids"]) == 12 == trainer.args.per_device_train_batch_size


def test_defect_21_clipping_filtering_and_sampling(heard: dict[str, Any]) -> None:
    """Several updates from a batch have something to clip, and answers are sampled from what they are scored under. (Groups without a
    signal: test_groups_without_a_signal_count_for_nothing.)"""
    assert "old_per_token_logps" in heard["batch"]
    assert heard["trainer"].state.log_history[1]["clip_ratio/region_mean"] > 0
    assert heard["trainer"].generation_config.top_p == 1.0 == grpo.Settings.top_p


def test_defect_22_geometry_is_that_of_the_other_stages(heard: dict[str, Any]) -> None:
    """The prompt's ids, visual places and all, are those that SFT trains on."""
    trainer = heard["trainer"]
    row = trainer.rows[0]
    batch = SFTCollator(trainer.encoder)([trainer.asked(row) | {"completion": "A walk."}])
    prompt = trainer._encode([row])[0]
    assert batch["input_ids"][0, : len(prompt.ids)].tolist() == prompt.ids.tolist()


def test_defect_29_every_default_can_be_run(tmp_path: Path) -> None:
    """Fields of the script that nothing else sets: `Answers` and `Settings` as they come."""
    answers = grpo.Answers()
    assert grpo.reward_of(answers).func.__name__ == "dra_safe"  # type: ignore[attr-defined]
    settings = grpo.Settings(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert (settings.num_generations, settings.epsilon, settings.beta, settings.max_completion_length) == (6, 0.2, 0.04, 768)
    assert (settings.loss_type, settings.max_grad_norm, settings.weight_decay, settings.temperature) == ("grpo", 5.0, 0.01, 1.0)
    assert settings.generation_batch_size == 6


def test_defect_30_the_tower_runs_once_and_the_head_on_answers_alone(heard: dict[str, Any]) -> None:
    """Two distinct videos of three prompts, in two updates with old log-probabilities and a reference; no logits of prompts."""
    assert len(heard["tower"]) == 2
    counts = int(heard["batch"]["completion_mask"].sum())  # of tokens that count; before rewards are known, all do
    every = heard["batch"]["completion_ids"].numel()
    assert counts <= every <= 12 * 5
    assert heard["projected"][2:] == [counts] * 2
    assert max(heard["projected"][:2]) <= every
    assert len(heard["projected"]) == 4


@pytest.mark.parametrize(("answers", "message"), [
    ({"reward": "format_reward"}, "reward must be one of dra_paper, dra_safe"),
    ({"reward": "dra_paper", "judge": "refusal"}, "judge is for dra_safe"),
    ({"judge": "nobody"}, "nobody"),
])  # fmt: skip
def test_answers_that_cannot_be(answers: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo.reward_of(grpo.Answers(**answers))


def test_torch_is_not_left_changed(heard: dict[str, Any]) -> None:
    """Hooks that scoring sets are taken off again."""
    backbone = heard["trainer"].model.base_model
    assert not [hook for hook in backbone._forward_hooks.values() if getattr(hook, "__name__", "") == "pick"]
    assert torch.is_grad_enabled()
