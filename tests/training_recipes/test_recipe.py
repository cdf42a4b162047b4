"""What a YAML says and what becomes of it: keys and values that are refused, loading, freezing, learning rates, dry runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sft_cases import ALL, NAMES, folder, media, recipe, row, rows, trainer, weights
from torch import nn

from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes import run, sft
from videosafety.training_recipes.data import DataError, save
from videosafety.training_recipes.recipe import PARTS, Recipe, freeze, load_model, load_rows, param_groups, parse, part_of

GIVEN = {"stage": "sft", "model": "m", "data": ["d.jsonl"], "train": ["language_model"], "output_dir": "out", "use_cpu": True}


def written(folder_: Path, **values: Any) -> list[str]:
    (folder_ / "recipe.yaml").write_text(yaml.safe_dump({**GIVEN, **values}), encoding="utf-8")
    return ["--config", str(folder_ / "recipe.yaml")]


# --- the YAML ----------------------------------------------------------------------------------------------------------------------


def test_the_command_line_overrides_the_yaml(tmp_path: Path) -> None:
    argv = written(tmp_path, fps=2.0, learning_rate="1e-6", alarm_token_lr="2e-5", max_frames=8, seed=5)
    given, settings = parse([*argv, "--max-frames", "16", "--data", "a.jsonl", "b.jsonl", "--dry-run"], sft.SFTSettings)
    assert (given.fps, given.max_frames, given.data, given.dry_run) == (2.0, 16, ["a.jsonl", "b.jsonl"], True)
    assert (given.alarm_token_lr, given.alarm_head_lr, settings.learning_rate) == (2e-5, 1e-5, 1e-6)
    assert settings.remove_unused_columns is False
    assert settings.data_seed == settings.seed == 5


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key with a typo": ({"learnin_rate": 1}, "learnin_rate"),
    "an unknown stage": ({"stage": "rl"}, "stage must be one of sft, at_sft, dpo, grpo"),
    "a text for a list": ({"data": "d.jsonl"}, "data must be a list of texts"),
    "no data": ({"data": []}, "data is empty"),
    "nothing learns": ({"train": []}, "train is empty"),
    "an unknown part": ({"train": ["llm"]}, "train names llm; parts are"),
    "heads without labels": ({"train": ["alarm_heads"]}, "alarm_heads, which learn from labels in stage at_sft alone"),
    "heads in grpo": ({"stage": "grpo", "train": ["alarm_heads"]}, "not in grpo"),
    "an unknown dtype": ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
    "a rate of nought": ({"alarm_token_lr": 0.0}, "alarm_token_lr must be above 0"),
    "a negative rank": ({"lora_rank": -1}, "lora_rank must not be negative"),
    "LoRA on the vision tower": ({"lora_rank": 4, "train": ["language_model", "vision"]}, "lora_rank needs language_model in train"),
    "LoRA on nothing": ({"lora_rank": 4, "train": ["alarm_tokens"]}, "lora_rank needs language_model in train"),
    "no frames": ({"max_frames": 0}, "max_frames must be at least 1"),
    "no rate": ({"fps": 0.0}, "fps must be above 0"),
    "few pixels": ({"max_pixels": 10}, "max_pixels must be at least"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_yaml_may_not_say(case: str, tmp_path: Path) -> None:
    values, said = WRONG[case]
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        parse(written(tmp_path, **values), sft.SFTSettings)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config .*none\.yaml cannot be read"):
        parse(["--config", str(tmp_path / "none.yaml")], sft.SFTSettings)
    with pytest.raises(ValueError, match="stage is grpo, and this script trains sft and at_sft"):
        sft.main(written(tmp_path, stage="grpo"))
    with pytest.raises(DataError, match="no such file"):
        sft.main(written(tmp_path, output_dir=str(tmp_path)))


TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
TRAINED = {"videos": ["a.mp4"], "visual_label": 0, "textual_label": 0, "prompt": "What is it?"}
HELD_OUT: dict[str, tuple[dict[str, Any], str | None]] = {
    "the same row": ({}, "is in data too, as row 1 of test; hold it out"),
    "the same row without its id": ({"id": "b-1", "source": "b"}, "eval_data, row b-1 of b: is in data too, as row 1 of test"),
    "another answer": ({"id": "9", "completion": "A dog."}, "is in data too, as row 1 of test"),
    "other white space, and a placeholder": ({"id": "9", "prompt": "<video>\nWhat  is it?"}, "is in data too, as row 1 of test"),
    "its id alone": ({"prompt": "Who?", "videos": ["b.mp4"]}, "is in data too, as row 1 of test"),
    "another visual label": ({"id": "9", "prompt": "Who?", "visual_label": 1}, "visual_label is 1, but 0 in data, row 1 of test"),
    "another textual label": ({"id": "9", "videos": ["b.mp4"], "textual_label": 1}, "textual_label is 1, but 0 in data, row 1 of test"),
    "the words with another clip": ({"id": "9", "videos": ["b.mp4"]}, None),
    "the clip with other words": ({"id": "9", "prompt": "Who?"}, None),
    "after other turns": ({"id": "9", "history": TALK}, None),
    "an id of another set": ({"source": "b", "prompt": "Who?"}, None),
}


@pytest.mark.parametrize(("values", "said"), HELD_OUT.values(), ids=HELD_OUT)
def test_held_out_rows_are_not_trained_on_and_agree_with_what_is(values: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    save([row(0), row(1, **TRAINED)], tmp_path / "a.jsonl")
    save([row(1, **TRAINED | values)], tmp_path / "b.jsonl")
    files = {"data": [str(tmp_path / "a.jsonl")], "eval_data": [str(tmp_path / "b.jsonl")]}
    what = recipe(stage="sft", train=["language_model"], **files)
    if said is None:
        assert len(load_rows(what)[1] or []) == 1
        return
    with pytest.raises(DataError) as error:
        load_rows(what)
    assert said in str(error.value)


def test_a_copy_of_rows_without_ids_is_not_held_out(tmp_path: Path) -> None:
    """Ids are then made of the file's name, and would be others."""
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Why?", "completion": "A cat."}\n{"prompt": "Who?", "completion": "A dog."}\n')
    files = {"data": [str(tmp_path / "train.jsonl")], "eval_data": [str(tmp_path / "held_out.jsonl")]}
    with pytest.raises(DataError, match="2 problem"):
        load_rows(recipe(stage="sft", train=["language_model"], **files))


def test_held_out_rows_that_would_never_be_evaluated_are_refused(tmp_path: Path) -> None:
    given = {"eval_data": ["b.jsonl"], "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="eval_data is there, and eval_strategy is `no`: set it to steps or epoch"):
        parse(written(tmp_path, **given), sft.SFTSettings)
    assert parse(written(tmp_path, **given, eval_strategy="epoch"), sft.SFTSettings)[0].eval_data == ["b.jsonl"]


# --- models ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alarm", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_models_load_whole_in_float32_and_no_code_of_theirs_is_run(
    name: str, alarm: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder(name, alarm), copy)
    for file in copy.glob("*.py"):
        file.write_text("raise SystemExit('code of the checkpoint was run')")
    model, processor = load_model(recipe(name, alarm=alarm, model=str(copy), train=[]))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert not any(value.requires_grad for value in model.parameters())
    assert processor.chat_template is not None
    assert ("<|visual_alarm|>" in processor.chat_template) == alarm
    assert "custom code" not in "".join(capfd.readouterr())  # transformers would ask at the terminal
    parts = {part_of(key) for key, _ in model.named_parameters()}
    assert parts == set(PARTS) - (set() if alarm else {"alarm_tokens", "alarm_heads"})


def test_what_cannot_be_started_from(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a PEFT adapter: merge it"):
        load_model(recipe(model=str(tmp_path / "adapter")))
    with pytest.raises(ValueError, match="cannot be started from"):
        load_model(recipe(model=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="train names alarm_tokens, but the model has none"):
        load_model(recipe(alarm=False, stage="sft", train=["alarm_tokens"]))
    broken = tmp_path / "broken"
    shutil.copytree(folder(), broken)
    tensors = load_file(broken / "model.safetensors")
    save_file({key: value for key, value in tensors.items() if "alarm_tokens" not in key}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing"):
        load_model(recipe(model=str(broken)))


def test_freezing() -> None:
    model = load_model(recipe(train=[]))[0]
    for parts in (["vision"], ["projector", "alarm_tokens"], [], list(PARTS)):
        freeze(model, parts)
        assert {part_of(key) for key, value in model.named_parameters() if value.requires_grad} == set(parts)
    with pytest.raises(ValueError, match=r"the parameter 0\.weight belongs to no part"):
        freeze(nn.Sequential(nn.Linear(1, 1)), [])


def test_lora_is_on_the_language_model_alone() -> None:
    for name in NAMES:
        model = load_model(recipe(name, lora_rank=2, train=["language_model", "alarm_tokens"]))[0]
        learn = [key for key, value in model.named_parameters() if value.requires_grad]
        assert {part_of(key) for key in learn} == {"language_model", "alarm_tokens"}
        assert all("lora_" in key or "alarm_tokens" in key for key in learn)
        assert sum("lora_A" in key for key in learn) == 2 * 7  # layers, projections


# --- precision ---------------------------------------------------------------------------------------------------------------------


def test_steps_vanish_in_bfloat16() -> None:
    """Why it is refused."""
    weight = torch.tensor(0.02, dtype=torch.bfloat16)
    assert weight - 1e-6 == weight
    assert weight - 1e-5 == weight


@pytest.mark.parametrize("train", [["language_model"], ALL])
def test_weights_that_learn_in_bfloat16_are_refused(train: list[str], tmp_path: Path) -> None:
    what = recipe(dtype="bfloat16", train=train)
    with pytest.raises(ValueError, match=r"(?s)are to learn in torch.bfloat16, .*vanish.*`bf16: true`"):
        load_model(what)
    one = trainer(tmp_path)
    model = one.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="are to learn in torch"):
        type(one)(model=model, args=one.args, recipe=recipe(), processing_class=one.processing_class)


def test_a_frozen_base_may_be_bfloat16(tmp_path: Path) -> None:
    what = recipe(dtype="bfloat16", lora_rank=2)
    one = trainer(tmp_path, what, bf16=True, learning_rate=1e-5, optim="adamw_torch")
    before = weights(one.model)
    assert {value.dtype for value in one.model.parameters()} == {torch.float32, torch.bfloat16}
    one.train()
    moved = {key for key, value in one.model.named_parameters() if not torch.equal(value, before[key])}
    assert {"alarm_tokens", "alarm_heads"} == {part_of(key) for key in moved if "modules_to_save" in key}
    assert any("lora_B" in key for key in moved)


def test_bfloat16_canary(tmp_path: Path) -> None:
    """Computing in bfloat16, a step of 1e-6 moves every weight that learns."""
    one = trainer(tmp_path, data=rows(4), bf16=True, learning_rate=1e-6, optim="adamw_torch", per_device_train_batch_size=4)
    before = weights(one.model)
    one.train()
    for key, value in one.model.named_parameters():
        if value.requires_grad and value.grad is not None and "embed" not in key:
            share = float(((value != before[key]) == (value.grad != 0)).float().mean())
            assert share > 0.99 or value.abs().median() > 8, key
    assert one.state.log_history[0]["loss"] > 0


# --- learning rates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_every_group_has_its_rate(rank: int, tmp_path: Path) -> None:
    what = recipe(alarm_token_lr=1e-2, alarm_head_lr=1e-3, lora_rank=rank)
    one = trainer(tmp_path, what, learning_rate=1e-4, weight_decay=0.5, optim="adamw_torch", lr_scheduler_type="linear")
    one.train()
    groups = one.optimizer.param_groups  # type: ignore[union-attr]
    assert {(group["name"], group["initial_lr"]) for group in groups} == {
        ("language_model", 1e-4),
        ("alarm_tokens", 1e-2),
        ("alarm_heads", 1e-3),
    }
    assert groups[0]["name"] == "language_model"  # whose rate transformers logs
    decays = {group["weight_decay"] for group in groups}
    assert decays == {0.0, 0.5}
    first = one.state.log_history[0]
    assert (first["learning_rate"], first["lr_alarm_tokens"], first["lr_alarm_heads"]) == (1e-4, 1e-2, 1e-3)
    held = [id(value) for group in groups for value in group["params"]]
    assert len(held) == len(set(held)) == sum(value.requires_grad for value in one.model.parameters())


def test_rates_are_the_papers_unless_a_recipe_says_otherwise(tmp_path: Path) -> None:
    plain = Recipe(stage="at_sft", model="m", data=["d"], train=ALL)
    settings = sft.SFTSettings(output_dir=str(tmp_path), use_cpu=True)
    groups = param_groups(load_model(recipe())[0], plain, settings.learning_rate, settings.weight_decay, [])
    assert {group["name"]: group["lr"] for group in groups} == {"language_model": 1e-6, "alarm_tokens": 1e-5, "alarm_heads": 1e-5}


def test_rates_fall_back_to_the_learning_rate() -> None:
    model = load_model(recipe())[0]
    assert {group["lr"] for group in param_groups(model, recipe(), 3e-4, 0.0, [])} == {3e-4}


# --- resuming from older layouts ---------------------------------------------------------------------------------------------------


def test_checkpoints_of_an_older_layout_resume(tmp_path: Path) -> None:
    """transformers 5 saves weights by the names that they came with: a Trainer would not find them again, and go on from the base."""
    old = tmp_path / "old"
    shutil.copytree(folder("qwen2_5_vl", alarm=False), old)
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    tensors = load_file(old / "model.safetensors")
    renamed = {
        next((new + key.removeprefix(was) for was, new in names.items() if key.startswith(was)), key): v for key, v in tensors.items()
    }
    save_file(renamed, old / "model.safetensors", {"format": "pt"})
    what = recipe("qwen2_5_vl", alarm=False, stage="sft", model=str(old))
    one = trainer(tmp_path / "out", what, save_strategy="steps", save_steps=1, max_steps=1)
    one.train()
    again = trainer(tmp_path / "out", what)
    again._load_from_checkpoint(str(tmp_path / "out" / "checkpoint-1"))
    for key, value in weights(one.model).items():
        assert torch.equal(weights(again.model)[key], value), key
    other = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    save_file({key: v for key, v in other.items() if "norm" not in key}, tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    with pytest.raises(ValueError, match="the checkpoint to resume from lacks"):
        again._load_from_checkpoint(str(tmp_path / "out" / "checkpoint-1"))


# --- dry runs and runs -------------------------------------------------------------------------------------------------------------


def yaml_of(tmp_path: Path, **values: Any) -> list[str]:
    save([row(n, videos=["a.mp4"], visual_label=0, textual_label=n % 2) for n in range(6)], media() / "six.jsonl")
    given = {key: value for key, value in asdict(recipe(data=[str(media() / "six.jsonl")])).items() if value is not None}
    given |= {"output_dir": str(tmp_path / "out"), "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", **values}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    return ["--config", str(tmp_path / "recipe.yaml")]


def test_a_dry_run_tells_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = yaml_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3)
    sft.main([*argv, "--dry_run"])
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{\n") :])
    assert found["batch"] == {
        "processes": 1,
        "per_device": 2,
        "accumulation": 2,
        "generations": 1,
        "rows_per_optimizer_step": 4.0,
        "optimizer_steps": 6,
    }
    one = trainer(tmp_path)
    for part in PARTS:
        learn = [value.numel() for key, value in one.model.named_parameters() if part_of(key) == part and value.requires_grad]
        assert found["parts"][part]["trained"] == sum(learn), part
    assert found["tokens_per_optimizer_step"] == 2 * found["one_batch"]["tokens"]
    assert found["one_batch"]["loss"] > 0
    assert found["recipe"]["train"] == ALL
    assert found["rows"]["media"] == {"video": 6}
    assert found["rows"]["textual_label"] == {"0": 3, "1": 3}
    assert found["memory_estimate_gib"].keys() == {"weights", "gradients", "optimizer", "activations", "sum"}
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_memory_by_hand() -> None:
    model = load_model(recipe(train=["language_model"]))[0]
    learn = sum(value.numel() for value in model.parameters() if value.requires_grad)
    found = run.memory(model, 10**6, checkpointing=False, half=True)
    assert found["activations"] == pytest.approx(34 * 10**6 * 32 * 2 / 2**30, abs=1e-3)
    assert found["optimizer"] == pytest.approx(8 * learn / 2**30, abs=1e-3)
    assert run.memory(model, 10**6, checkpointing=True, half=True)["activations"] == pytest.approx((34 + 4) * 32e6 / 2**30, abs=1e-3)


@pytest.mark.parametrize("more", [{}, {"num_train_epochs": 1.5}, {"max_steps": 4}, {"dataloader_drop_last": True}])
def test_steps_are_those_that_are_done(more: dict[str, Any], tmp_path: Path) -> None:
    what = recipe(train=["alarm_heads"])
    one = trainer(tmp_path, what, [row(n) for n in range(9)], per_device_train_batch_size=2, gradient_accumulation_steps=2, **more)
    one.train()
    assert run.arithmetic(one.args, 9)["optimizer_steps"] == one.state.global_step


@pytest.mark.slow  # `make test-slow`
def test_the_script_runs_as_a_command_and_errors_are_one_line(tmp_path: Path) -> None:
    argv = yaml_of(tmp_path, max_steps=1)
    command = [sys.executable, "-m", "videosafety.training_recipes.sft", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / run.RECORD).read_text())["recipe"]["stage"] == "at_sft"
    done = subprocess.run([*command, "--train", "legs"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("train names legs")
    assert "Traceback" not in done.stderr


def test_everything_that_scripts_import_is_there() -> None:
    for name in recipes.__all__:
        assert hasattr(recipes, name)
    assert replace(Recipe(stage="sft", model="m", data=["d"], train=["language_model"]), train=[]).train == []
