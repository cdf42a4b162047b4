"""The GRPO trainer: what counts and what does not, accumulation, iterations, resuming, LoRA, rewards, and settings that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpo_cases as cases
import pytest
import torch

from videosafety.training_recipes import rewards
from videosafety.training_recipes.data import DataError
from videosafety.training_recipes.grpo_trainer import counting

NAN = float("nan")


def change(before: dict[str, torch.Tensor], trainer: Any) -> dict[str, float]:
    after = cases.weights(trainer.model)
    return {name: float((after[name] - value).abs().max()) for name, value in before.items()}


def same(mine: dict[str, torch.Tensor], its: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert mine.keys() == its.keys()
    for name, value in its.items():
        assert (mine[name] - value).abs().max() <= tolerance, name


def rewarding(*per_group: Sequence[float | None]) -> Callable[..., list[float | None]]:
    """A reward that gives the answers to row r<n> the values of the n-th group."""

    def reward(prompts: Any, completions: Any, id: Sequence[str], **columns: Any) -> list[float | None]:
        seen: dict[str, int] = {}
        values = []
        for name in id:
            values.append(per_group[int(name[1:])][seen.get(name, 0)])
            seen[name] = seen.get(name, 0) + 1
        return values

    return reward


@pytest.mark.parametrize(("rewards_", "generations", "counts", "varied"), [
    ([[1], [0], [1], [1]], 2, [1, 1, 0, 0], [1, 0]),
    ([[1], [0], [NAN], [1]], 2, [1, 1, 0, 0], [1, 0]),
    ([[NAN], [NAN], [1], [2]], 2, [0, 0, 1, 1], [0, 1]),
    ([[1], [NAN], [2]], 3, [1, 0, 1], [1]),
    ([[3.1], [3.1], [3.1 + 1e-7]], 3, [0, 0, 0], [0]),
    ([[1, NAN], [NAN, 1], [NAN, NAN], [2, 1]], 4, [1, 1, 0, 1], [1]),
    ([[1, 0], [0, 1]], 2, [0, 0], [0]),
])  # fmt: skip
def test_counting(rewards_: list[list[float]], generations: int, counts: list[int], varied: list[int]) -> None:
    table = torch.tensor(rewards_)
    mine, groups, scored = counting(table, torch.ones(table.shape[1]), generations)
    assert (mine.int().tolist(), groups.int().tolist()) == (counts, varied)
    assert scored.tolist() == (~table.isnan().all(1)).tolist()


def test_groups_without_a_signal_count_for_nothing(tmp_path: Path) -> None:
    """One step on a group with a signal and one without: as a step on the first alone, and as if the second were unscored."""
    signal, flat, unscored = (1.0, 0.0, 0.5), (2.0, 2.0, 2.0), (None, None, None)
    made = cases.rows(2)
    found = []
    for data, reward in ((made, rewarding(signal, flat)), (made, rewarding(signal, unscored)), (made, rewarding(signal, signal))):
        trainer = cases.trainer(tmp_path, data, reward=reward, shuffle_dataset=False, beta=0.04, weight_decay=0.1)
        trainer.train()
        found.append((cases.weights(trainer.model), trainer.state.log_history[0]))
    same(found[0][0], found[1][0], 0)
    assert any((found[0][0][name] - found[2][0][name]).abs().max() > 1e-4 for name in found[0][0])
    assert [log["frac_zero_std"] for _, log in found] == [0.5, 0.5, 0.0]
    assert [log["frac_unscored"] for _, log in found] == [0.0, 0.5, 0.0]


def test_denominators_are_those_of_what_counts(tmp_path: Path) -> None:
    """The loss of a batch with a flat group is that of the other group alone, at any accumulation."""
    signal, flat = (1.0, 0.0, 0.5), (2.0, 2.0, 2.0)
    norms = []
    for count, batch, accumulation in ((2, 6, 1), (2, 1, 6)):
        trainer = cases.trainer(
            tmp_path,
            cases.rows(count),
            reward=rewarding(signal, flat),
            shuffle_dataset=False,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",  # Adam makes whole steps of the rounding of a gradient near 0
        )
        trainer.train()
        norms.append((trainer.state.log_history[0]["grad_norm"], cases.weights(trainer.model)))
    alone = cases.trainer(tmp_path, cases.rows(1), reward=rewarding(signal), shuffle_dataset=False, per_device_train_batch_size=3)
    batch = _generated(trainer=cases.trainer(tmp_path, cases.rows(2), reward=rewarding(signal, flat), shuffle_dataset=False))
    assert batch["scale"].tolist() == [2.0] * 6
    assert batch["counted"].tolist() == [3.0] * 6
    assert batch["completion_mask"][3:].sum() == 0
    assert batch["completion_mask"][:3].all(1).any()
    assert _generated(alone)["scale"].tolist() == [1.0] * 3
    for norm, weights in norms[1:]:
        assert norm == pytest.approx(norms[0][0], rel=1e-4)
        same(weights, norms[0][1])


def _generated(trainer: Any) -> dict[str, Any]:
    return trainer._generate_and_score_completions([row for row in trainer.rows for _ in range(trainer.num_generations)])


@pytest.mark.parametrize("values", [(None, None, None), (1.0, 1.0, 1.0)], ids=["unscored", "flat"])
@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_a_step_without_a_signal_changes_nothing(values: tuple[Any, ...], loss: str, tmp_path: Path) -> None:
    """Neither by the KL term nor by momentum nor by weight decay: the second step leaves what the first one made."""
    calls = []

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        calls.append(len(prompts))
        return [float(n) for n in range(len(prompts))] if len(calls) == 1 else list(values) * (len(prompts) // 3)

    trainer = cases.trainer(tmp_path, cases.rows(4), reward=reward, max_steps=2, weight_decay=0.5, beta=1.0, loss_type=loss)
    start = cases.weights(trainer.model)
    made: list[dict[str, torch.Tensor]] = []
    step = trainer.training_step
    trainer.training_step = lambda *a, **k: (made.append(cases.weights(trainer.model)), step(*a, **k))[1]
    trainer.train()
    assert len(calls) == 2
    assert any((made[1][name] - value).abs().max() > 1e-3 for name, value in start.items())
    same(cases.weights(trainer.model), made[1], 0)


@pytest.mark.parametrize("more", [{}, {"loss_type": "dapo"}], ids=str)
def test_accumulation_is_one_batch(more: dict[str, Any], tmp_path: Path) -> None:
    """6 × 1 = 3 × 2 = 1 × 6, for two prompts with three answers each, one of them unscored."""
    found = []
    for batch, accumulation in ((6, 1), (3, 2), (1, 6)):
        trainer = cases.trainer(
            tmp_path,
            cases.rows(2),
            reward=rewarding((1.0, None, 0.0), (0.3, 0.9, 0.1)),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",  # Adam makes whole steps of the rounding of a gradient near 0
            **more,
        )
        trainer.train()
        found.append(cases.weights(trainer.model))
    same(found[1], found[0])
    same(found[2], found[0])


def test_several_updates_from_one_batch(tmp_path: Path) -> None:
    """num_iterations 2: the second update is off-policy, so that clipping has something to do (defect 21 of the released code)."""
    trainer = cases.trainer(tmp_path, cases.rows(2), num_iterations=2, max_steps=2, learning_rate=1e-1)
    generated = []
    sample = trainer._generate_single_turn
    trainer._generate_single_turn = lambda *a, **k: (generated.append(1), sample(*a, **k))[1]
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert len(generated) == 1
    assert first["clip_ratio/region_mean"] == 0
    assert second["clip_ratio/region_mean"] > 0
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert second["kl"] > 0


@pytest.mark.parametrize("more", [
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3},
    {"num_iterations": 2, "save_steps": 2},
    {"steps_per_generation": 2, "per_device_train_batch_size": 3, "save_steps": 2},
], ids=["accumulation", "iterations", "generation of two steps"])  # fmt: skip
def test_resumed_is_uninterrupted(more: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_only_model": False} | more
    whole = cases.trainer(tmp_path / "whole", cases.rows(5), **settings)
    whole.train()
    resumed = cases.trainer(tmp_path / "resumed", cases.rows(5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    same(cases.weights(resumed.model), cases.weights(whole.model), 0)
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_lora_learns_against_its_base(tmp_path: Path) -> None:
    """The reference is the model with the adapter off: no second model, and its scores are those of the start checkpoint."""
    trainer = cases.trainer(tmp_path, cases.rows(2), recipe_more={"lora_rank": 2}, max_steps=2, learning_rate=1e-1)
    full = cases.trainer(tmp_path, cases.rows(2))
    assert trainer.ref_model is None
    trainer.train()
    log = trainer.state.log_history
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[1]["kl"] > 1e-3
    batch = _generated(trainer)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    full._prompts = full._encode([row for row in full.rows for _ in range(3)])
    full._see(full.model)
    with torch.no_grad():
        reference = full._get_per_token_logps_and_entropies(full.ref_model, ids, torch.ones_like(ids), batch["completion_ids"].shape[1])[0]
    mask = batch["completion_mask"].bool()
    assert (batch["ref_per_token_logps"] - reference)[mask].abs().max() <= 1e-5


def test_the_reference_and_frozen_parts_stay(tmp_path: Path) -> None:
    trainer = cases.trainer(tmp_path, cases.rows(2), max_steps=2, per_device_train_batch_size=3)
    reference, before = cases.weights(trainer.ref_model), cases.weights(trainer.model)
    trainer.train()
    same(cases.weights(trainer.ref_model), reference, 0)
    moved = {name for name, by in change(before, trainer).items() if by > 0}
    assert moved
    assert all("language_model" in name or "lm_head" in name for name in moved)


def test_special_tokens_are_never_sampled(tmp_path: Path) -> None:
    """However likely the model finds them; the tokens that end an answer stay."""
    trainer = cases.trainer(tmp_path, cases.rows(2), max_completion_length=12)
    tokenizer, config = trainer.processing_class.tokenizer, trainer.model.config
    never = set(trainer.generation_config.suppress_tokens)
    assert {config.image_token_id, config.video_token_id, config.visual_alarm_token_id, config.textual_alarm_token_id} <= never
    assert set(tokenizer.all_special_ids) - {tokenizer.eos_token_id} <= never
    assert tokenizer.eos_token_id not in never
    with torch.no_grad():
        trainer.model.lm_head.weight[sorted(never)] *= 50
    sampled = _generated(trainer)["completion_ids"]
    assert not set(sampled.flatten().tolist()) & (never - {tokenizer.pad_token_id})


@pytest.mark.parametrize("reward", [rewards.dra_paper, rewards.dra_safe], ids=["dra_paper", "dra_safe"])
def test_rewards_get_the_columns_that_they_read(reward: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unlike problem types in one batch; the judge is shown the bare question and the media, though the prompt asks for tags."""
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")
    said = "<think>a</think><answer>The person walks along the street.</answer><vidType>1</vidType><textType>1</textType>"
    made = cases.rows(2)
    made[1] = made[1] | {"problem_type": "multiple choice", "reference": "B", "visual_label": None, "textual_label": None}  # type: ignore[assignment]
    heard: list[dict[str, Any]] = []

    def spy(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        heard.append({"prompts": prompts} | columns)
        answers = [said, said.replace("1</text", "0</text"), said.replace("The person walks along the street.", "B")] * 2
        return reward(prompts, [[{"role": "assistant", "content": text}] for text in answers], **columns)

    trainer = cases.trainer(tmp_path, made, reward=spy, max_steps=1, asks={})
    trainer.train()
    columns = heard[0]
    assert set(columns["query"]) == {row["prompt"] for row in made}
    asked = [message[-1]["content"][-1]["text"] for message in columns["prompts"]]
    assert all(
        "<think>" in text and ("<vidType>" in text) == (kind != "multiple choice")
        for text, kind in zip(asked, columns["problem_type"], strict=True)
    )
    assert sorted(columns["videos"]) == [["a.mp4"]] * 3 + [["b.mp4"]] * 3
    log = trainer.state.log_history[0]
    assert log["frac_zero_std"] == 0
    assert log["reward"] > 0
    assert log["grad_norm"] > 0


@pytest.mark.parametrize(("more", "message"), [
    ({"use_vllm": True}, "use_vllm is refused. TRL 1.16 gives vLLM the images of a prompt and no videos"),
    ({"loss_type": "bnpo"}, "loss_type must be one of grpo, dr_grpo, dapo"),
    ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
    ({"sync_ref_model": True}, "the reference is the start checkpoint"),
    ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "2 does not divide steps_per_generation 3"),
    ({"steps_per_generation": 1, "gradient_accumulation_steps": 4}, "leave steps_per_generation out, or set it to 4 or a multiple"),
    ({"num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 0.25}, "save every 2 optimiser"),
    ({"steps_per_generation": 2, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 0.5}, "save every 2 optimiser"),
    ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 3}, "save every 2 optimiser"),
    ({"per_device_train_batch_size": 12}, r"2 row\(s\), but one generation batch takes 4"),
])  # fmt: skip
def test_settings_that_cannot_be(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        cases.trainer(tmp_path, **more)
    assert isinstance(error.value, DataError) == ("generation batch takes" in message)


def test_a_share_of_all_steps_may_be_saved_where_every_step_has_its_own_answers(tmp_path: Path) -> None:
    cases.trainer(tmp_path, save_strategy="steps", save_steps=0.25)


def test_text_only_rows_and_mixed_batches(tmp_path: Path) -> None:
    trainer = cases.trainer(tmp_path, cases.rows(4, videos=[[]]), per_device_train_batch_size=12)
    before = cases.weights(trainer.model)
    trainer.train()
    assert max(change(before, trainer).values()) > 0
