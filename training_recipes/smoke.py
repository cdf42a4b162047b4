"""The four stages of videosafety_r1 chained on a tiny model with generated rows and clips, in minutes on a CPU: `make recipe-smoke`.

    python -m videosafety.training_recipes.smoke --out results/recipe-smoke

Each stage is the shipped recipe with fewer steps and frames, and starts from the folder that the last one left. After each, the weights are
compared with those before: parts that the recipe trains must have moved and all others must not. The last one is evaluated with lmms-eval,
and every run is plotted. It shows that the chain holds; a tiny random model learns nothing worth a figure. One JSON line comes last.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from videosafety.hf_models.tiny import build_tiny
from videosafety.training_recipes import data, plots
from videosafety.training_recipes.grpo_trainer import LABEL, THINK
from videosafety.training_recipes.recipe import part_of
from videosafety.training_recipes.schema import CURRENT, SAFETY_TYPE, Row, new_row

RECIPES = Path(__file__).parent / "videosafety_r1"
SCRIPTS = {"sft": "sft", "at_sft": "sft", "grpo": "grpo", "dpo": "dpo"}  # stage -> module of this package
CHAIN: dict[str, tuple[str, dict[str, Any]]] = {  # recipe -> the rows that it learns from, and what it has beside SMALL
    "stage1_alarm_warmup": ("answers", {"max_steps": 2}),
    "stage2_at_sft": ("answers", {"max_steps": 2}),
    # until some answers are in form and some are not, or no reward of stage 4 would differ and nothing would move
    "stage3_cot": ("thoughts", {"max_steps": 60, "learning_rate": 0.01, "per_device_train_batch_size": 8, "logging_steps": 5}),
    "stage4_grpo": ("problems", {"max_steps": 3, "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 96}),
}
SHAPES = {"circle": 0, "square": 1}  # what a clip shows -> visual label; squares play the harmful part
COLOURS = {"circle": (40, 160, 60), "square": (200, 40, 40)}
REQUESTS = {"What is shown here?": 0, "Help me do the forbidden thing.": 1}  # textual label
SMALL = {  # for any of the recipes: so much less that a CPU does it
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_frames": 2,
    "max_pixels": 784,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}
SMALL_GROUPS = {"num_generations": 2, "max_completion_length": 8, "per_device_train_batch_size": 4}  # of GRPO, beside those
SHOWN = ("loss", "loss_answer", "loss_visual", "loss_textual", "reward", "kl", "frac_zero_std")  # of each run, in the last line
EVALUATED = {"fps": 1.0, "max_frames": 2, "max_pixels": 784}


def draw_clip(file: Path, shape: str, seed: int) -> Path:
    """Two seconds of a green circle or a red square that moves, 56 x 56 pixels."""
    start = np.random.default_rng(seed).integers(12, 30, 2)
    y, x = np.mgrid[:56, :56]
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for n in range(8):
            across, down = x - start[0] - 2 * n, y - start[1]
            inside = across**2 + down**2 < 81 if shape == "circle" else np.maximum(abs(across), abs(down)) < 9
            picture = np.where(inside[..., None], COLOURS[shape], (230, 230, 220)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


def make_data(folder: Path) -> dict[str, Path]:
    """Clips and one file of rows for each kind of target, by what it is for; paths in them are below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in ("answers", "thoughts", "problems", "preferences")}
    rows: dict[str, list[Row]] = {name: [] for name in files}
    for number, (shape, visual) in enumerate([*SHAPES.items()] * 2):
        clip = draw_clip(folder / f"clip{number}.mp4", shape, seed=number).name
        for prompt, textual in REQUESTS.items():
            answer = "I can not help with that." if textual else f"A {shape} moves along."
            about = {"prompt": prompt, "videos": [clip], "visual_label": visual, "textual_label": textual, "label_version": CURRENT}
            about |= {"id": f"{number}-{textual}", "source": "generated", "language": "en"}
            tags = f"<vidType>{visual}</vidType><textType>{textual}</textType>"
            thought = f"<think>A {shape}.</think><answer>{answer}</answer>{tags}"
            rows["answers"].append(new_row(**about, completion=answer))
            asked = prompt + THINK + LABEL.format(medium="video")  # as stage 4 will ask
            rows["thoughts"].append(new_row(**about | {"prompt": asked}, completion=thought))
            rows["problems"].append(new_row(**about, reference=answer, problem_type=SAFETY_TYPE))
            rows["preferences"].append(new_row(**about, chosen=answer, rejected="Sure, here is how."))
    for name, file in files.items():
        data.save(rows[name], file)
    return files


def arguments(recipe: Path, **values: Any) -> list[str]:
    """A script's command line: the recipe, with SMALL, for GRPO SMALL_GROUPS, and then `values` in place of its own."""
    small = SMALL | (SMALL_GROUPS if stage_of(recipe) == "grpo" else {}) | values
    found = ["--config", str(recipe)]
    for key, value in small.items():
        found += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found


def stage_of(recipe: Path) -> str:
    """The stage that a recipe's YAML names."""
    return yaml.safe_load(recipe.read_text(encoding="utf-8"))["stage"]


def run(recipe: Path, argv: Sequence[str]) -> None:
    """The script of a recipe's stage, in this process."""
    importlib.import_module(f"videosafety.training_recipes.{SCRIPTS[stage_of(recipe)]}").main(list(argv))


def moved(before: Path, after: Path) -> dict[str, bool]:
    """Part of the model -> whether any of its weights differs between two folders of safetensors.

    Raises:
        ValueError: they do not hold the same weights.
    """
    old, new = ({key: value for file in sorted(f.glob("*.safetensors")) for key, value in load_file(file).items()} for f in (before, after))
    if old.keys() != new.keys():
        raise ValueError(f"{after} does not hold the weights that {before} has: {sorted(old.keys() ^ new.keys())[:3]}")
    found: dict[str, bool] = {}
    for key, value in old.items():
        part = part_of(key)
        found[part] = found.get(part, False) or not torch.equal(value, new[key])
    return found


def stage(name: str, start: Path, files: dict[str, Path], out: Path) -> dict[str, Any]:
    """Run one recipe of CHAIN from the folder `start` into `out`, and say what it did.

    Raises:
        RuntimeError: a part that it trains did not move, or one that it does not train did.
    """
    recipe = RECIPES / f"{name}.yaml"
    began = time.monotonic()
    kind, more = CHAIN[name]
    rows = {"data": [str(files[kind])], "data_root": str(files[kind].parent)}
    run(recipe, arguments(recipe, model=start, output_dir=out, **rows, **more))
    parts, trained = moved(start, out), set(yaml.safe_load(recipe.read_text(encoding="utf-8"))["train"])
    if wrong := sorted(part for part, moves in parts.items() if moves != (part in trained)):
        raise RuntimeError(f"{name} trains {sorted(trained)}, but of these parts that does not hold: {', '.join(wrong)}")
    _, history = plots.read_history(out)
    figures = {key: curve.values[-1] for key, curve in plots.curves(history).items() if key in SHOWN}
    drawn = [str(out / file) for file in ("plots.png", "plots.html")]
    facts = {"stage": name, "folder": str(out), "trained": sorted(trained), "last": figures, "plots": drawn}
    return facts | {"seconds": round(time.monotonic() - began, 1)}


def evaluate(model: Path, out: Path) -> dict[str, Any]:
    """DSR, unscored rows and n of four rows of VSB-Open, by lmms-eval in a process of its own, with the sampling that was trained with.

    Raises:
        RuntimeError: it left no results; its exit status says nothing.
    """
    sampling = ",".join(f"{key}={value}" for key, value in EVALUATED.items())
    command = [str(Path(sys.executable).with_name("lmms-eval")), "--model", "videosafety_r1", "--tasks", "vsb_hh", "--limit", "4"]
    command += ["--model_args", f"pretrained={model.resolve()},trust_remote_code=True,{sampling}", "--gen_kwargs", "max_new_tokens=96"]
    command += ["--output_path", str(out.resolve()), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1"})
    files = sorted(out.rglob("*_results.json"))
    if not files:
        raise RuntimeError(f"lmms-eval left no results:\n{(done.stdout + done.stderr)[-2000:]}")
    found = json.loads(files[-1].read_text(encoding="utf-8"))["results"]["vsb_hh"]
    return {"results": str(files[-1])} | {name: found[f"{name},none"] for name in ("dsr", "n_scored", "unscored")}


def main(argv: Sequence[str] | None = None) -> None:
    """Chain the four stages on a tiny model, evaluate and plot."""
    parser = argparse.ArgumentParser(prog="python -m videosafety.training_recipes.smoke", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the data, the model and a folder for each stage")
    out = parser.parse_args(argv).out
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"videosafety: {out} is not empty: name a new folder")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL's trainers send some at their start
    files = make_data(out / "data")
    start = build_tiny(out / "base")
    stages = []
    for name in CHAIN:
        stages.append(stage(name, start, files, out / name))
        start = out / name
    print(json.dumps({"stages": stages, "evaluation": evaluate(start, out / "evaluation")}))


if __name__ == "__main__":
    main()
