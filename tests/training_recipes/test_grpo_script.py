"""The GRPO script from the command line: a dry run, a run that leaves a folder, resuming it, and recipes that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpo_cases as cases
import pytest

from videosafety.training_recipes import grpo, recipe


def command(scratch: Path, **more: Any) -> list[str]:
    data = scratch / "rows.jsonl"
    made = [{key: value for key, value in row.items() if value not in (None, [])} for row in cases.rows(4)]
    data.write_text("\n".join(map(json.dumps, made)) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "stage": "grpo",
        "model": cases.checkpoint(),
        "data": data,
        "data_root": cases.media(),
        "train": "language_model",
        "max_frames": 4,
        "output_dir": scratch / "out",
        "use_cpu": True,
        "bf16": False,
        "max_steps": 2,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "report_to": "none",
        "logging_steps": 1,
        "save_steps": 1,
        "judge": "refusal",
        "disable_tqdm": True,
    } | more
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    grpo.main(command(tmp_path, dry_run=True))
    said = json.loads(capsys.readouterr().out)
    assert said["one_batch"]["packed"] is True
    reference = said["one_batch"]["reference_gib_beside_the_estimate"]
    assert reference == pytest.approx(said["memory_estimate_gib"]["weights"], abs=2e-3)
    assert said["one_batch"]["tokens"] == said["one_batch"]["prompt_tokens"] + 4 * 4
    assert said["batch"]["rows_per_optimizer_step"] == 2
    assert said["parts"]["vision"]["trained"] == 0 < said["parts"]["language_model"]["trained"]
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_with_lora_the_model_is_its_own_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    grpo.main(command(tmp_path, dry_run=True, lora_rank=2))
    assert json.loads(capsys.readouterr().out)["one_batch"]["reference_gib_beside_the_estimate"] == 0


def test_a_run_leaves_a_model_and_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers out of form, every reward is the same: nothing is learned, and it says so."""
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    grpo.main(command(tmp_path, lora_rank=2))
    out = tmp_path / "out"
    assert not (out / "README.md").exists(), "TRL's card would be taken for the author's own words when the folder is published"
    model, _ = recipe.load_model(recipe.Recipe("grpo", str(out), ["-"], []))
    assert model.config.model_type == "alarm_video_llama_3"
    log = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["frac_zero_std"] for entry in log if "frac_zero_std" in entry] == [1.0, 1.0]
    assert log[0]["rewards/dra_safe/mean"] == -2.0
    record = json.loads((out / "training_recipe.json").read_text(encoding="utf-8"))
    assert record["settings"]["beta"] == 0.04
    before = cases.weights(recipe.load_model(recipe.Recipe("grpo", str(cases.checkpoint()), ["-"], []))[0])
    for name, value in cases.weights(model).items():
        assert (value - before[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize(("more", "message"), [
    ({"stage": "sft"}, "it is for grpo"),
    ({"use_vllm": True}, "use_vllm is refused"),
    ({"judge": "nobody"}, "nobody"),
    ({"per_device_train_batch_size": 32}, "one generation batch takes 16"),
])  # fmt: skip
def test_recipes_that_cannot_be(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        grpo.main(command(tmp_path, **more))
