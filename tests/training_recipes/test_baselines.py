"""The baselines as shipped: README and YAMLs name each other, their data commands run, and what they train is what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import ROOT, write_video

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.build import build_alarm
from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks.safevid.docs import held_out
from videosafety.training_recipes import data, recipe, sft, smoke
from videosafety.training_recipes.schema import STAGES, new_row

pytestmark = pytest.mark.slow  # `make test-slow`

FOLDER = ROOT / "training_recipes"
BASELINES = sorted((FOLDER / "baselines").glob("*.yaml"))
README = (FOLDER / "baselines" / "README.md").read_text(encoding="utf-8")
SAFEVID = (FOLDER / "safevid" / "README.md").read_text(encoding="utf-8")
GEOMETRY = ("fps", "max_frames", "max_pixels")


def values(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_every_baseline_stands_in_the_readme_with_a_command_and_an_evaluation() -> None:
    names = {file.stem for file in BASELINES}
    assert {name for name, file in re.findall(r"\[(\w+)\]\((\w+)\.yaml\)", README) if name == file} == names
    loops = [set(line.split()) for line in re.findall(r"for name in (.*); do", README)]
    commands = set(re.findall(r"baselines/(\w+)\.yaml", README)) | loops[0]
    assert commands == names
    assert loops[1] == names


@pytest.mark.parametrize("file", [*BASELINES, FOLDER / "safevid" / "dpo.yaml"], ids=lambda file: file.stem)
def test_it_sees_and_counts_as_the_method_it_is_compared_with(file: Path) -> None:
    said, its = values(file), values(FOLDER / "videosafety_r1" / "stage2_at_sft.yaml")
    sees = () if "embeddings" in said else GEOMETRY  # SEA sees no video
    same = (*sees, "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "weight_decay")
    assert {key: said[key] for key in same} == {key: its[key] for key in same}
    if said["data"] == its["data"]:
        assert said["num_train_epochs"] == 2 * its["num_train_epochs"]  # stages 1 and 2 together
    sampling = ",".join(f"{key}={its[key]:g}" for key in GEOMETRY)
    assert sampling in (README if file.parent.name == "baselines" else SAFEVID), "the README evaluates with another sampling"


def raw_files(folder: Path) -> None:
    """Two rows of every data set, in the layout that the READMEs' commands read."""
    (folder / "raw" / "vlguard").mkdir(parents=True)
    (folder / "data" / "vlguard" / "train").mkdir(parents=True)
    write_video(folder / "data" / "a.mp4")
    (folder / "data" / "vlguard" / "train" / "a.png").write_bytes(b"x")
    vlguard = [
        {"image": "a.png", "safe": False, "harmful_subcategory": "violence", "instr-resp": [{"instruction": "Q?", "response": "No."}]},
        {
            "image": "b.png",
            "safe": True,
            "instr-resp": [{"safe_instruction": "Why?", "response": "So."}, {"unsafe_instruction": "How?", "response": "No."}],
        },
    ]
    llava = [{"conversations": [{"from": "human", "value": f"Q{n}"}, {"from": "gpt", "value": "A."}]} for n in range(5001)]
    preferences = [{"image": "vlguard/train/a.png", "question": "Q?", "chosen": "No.", "rejected": "Yes."}]
    for name, records in {"vlguard/train": vlguard, "llava_mix": llava, "spa_vl": preferences}.items():
        (folder / "raw" / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    kept = next(name for name in (f"clips/{n}.mp4" for n in range(99)) if not held_out(name))
    pair = {"prompt": "What?", "chosen": "No.", "rejected": "Yes.", "videos": [kept]}
    (folder / "raw" / "safevid_rows.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    labels = {"visual_label": 1, "label_version": "1", "source": "vst", "videos": ["a.mp4"]}
    answers = [new_row(id=str(n), prompt=f"<video>\nQ{n}", completion="No.", textual_label=n % 2, **labels) for n in range(2)]
    data.save(answers, folder / "data" / "at_sft_10k.jsonl")


def test_the_readmes_data_commands_write_what_the_recipes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = [block for text in (README, SAFEVID) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    for file in (*BASELINES, FOLDER / "safevid" / "dpo.yaml"):
        for rows in values(file)["data"]:
            assert data.read_jsonl(Path(rows))[0], rows
    words = data.read_jsonl(Path("data/text_safety.jsonl"))[0]
    assert [(row["prompt"], row["videos"], row["visual_label"], row["textual_label"]) for _, row in words] == [
        ("Q0", [], None, 0),
        ("Q1", [], None, 1),
    ]
    assert len(data.read_jsonl(Path("data/llava_5k.jsonl"))[0]) == 5000
    assert all(values(file)["stage"] in STAGES for file in BASELINES)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("baselines")
    plain = build_tiny(folder / "plain", alarm=False)
    models = {
        "plain": plain,
        "alarm": build_alarm(plain, folder / "alarm"),
        "alarm8": build_alarm(plain, folder / "alarm8", per_modality=8),
    }
    return models | smoke.make_data(folder / "rows")


@pytest.mark.parametrize(
    ("name", "model"),
    [("plain_sft", "plain"), ("sft_tokens", "alarm"), ("soft_prompt", "alarm8"), ("star_dss", "plain")],
)
def test_it_trains_the_parts_that_it_names_and_no_others(world: dict[str, Path], tmp_path: Path, name: str, model: str) -> None:
    file = FOLDER / "baselines" / f"{name}.yaml"
    rows = {"data": [str(world["answers"])], "data_root": str(world["answers"].parent)}
    more = {"model": world[model], "output_dir": tmp_path / "out", "max_steps": 1, "report_to": "none", "save_strategy": "no"}
    sft.main(smoke.arguments(file, **rows, **more, warmup_steps=0, learning_rate=1e-3))
    before, after = (load_file(folder / "model.safetensors") for folder in (world[model], tmp_path / "out"))
    moved = {recipe.part_of(key) for key in before if not torch.equal(before[key], after[key])}
    assert moved == set(values(file)["train"])
    if name == "soft_prompt":
        assert (before["alarm_tokens.weight"] != after["alarm_tokens.weight"]).any(-1).sum() == 16
