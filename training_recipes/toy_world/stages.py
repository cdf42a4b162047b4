"""One seed of the toy world: base, alarm tokens, the four stages by the scripts of every recipe, and how each of them answers.

What is done stays done: a checkpoint whose evaluation stands beside it is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from videosafety.hf_models.build import build_alarm
from videosafety.training_recipes import data, grpo, sft
from videosafety.training_recipes.toy_world.evaluate import evaluate
from videosafety.training_recipes.toy_world.pretrain import pretrain
from videosafety.training_recipes.toy_world.rows import data_root, stage_rows

HERE = Path(__file__).parent
DONE = "evaluation.json"  # written last of all
FORMS = {"plain": 6400, "tagged": 9600, "reference": 960}  # form of the rows -> how many


@dataclass(frozen=True)
class Step:
    """One stage: its YAML beside this file, and the keys that an arm sets otherwise (None: leaves out)."""

    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Of the rows that it trains on; a key of FORMS."""
        return {"stage3_cot": "tagged", "stage4_grpo": "reference"}.get(self.recipe, "plain")

    def settings(self) -> dict[str, Any]:
        """The YAML's keys with those of the arm."""
        known = yaml.safe_load((HERE / f"{self.recipe}.yaml").read_text(encoding="utf-8")) | dict(self.options)
        return {key: value for key, value in known.items() if value is not None}

    def train(self, config: Path) -> None:
        main = grpo.main if self.form == "reference" else sft.main
        main(["--config", str(config)])


WARM_UP, AT_SFT, COT, GRPO = (Step(name) for name in ("stage1_alarm_warmup", "stage2_at_sft", "stage3_cot", "stage4_grpo"))
FULL = {"stage1": WARM_UP, "stage2": AT_SFT, "stage3": COT, "stage4": GRPO}


@dataclass(frozen=True)
class Arm:
    """A run that leaves one thing out: from the checkpoint `start` of the same seed, these stages. `without` says what is other."""

    start: str
    steps: Mapping[str, Step]
    without: str


def arms(work: Path) -> dict[str, Arm]:
    """Every ablation. Stages that are as in the whole run are not made again: an arm starts from where it differs."""
    unheaded = {"stage": "sft", "visual_loss_weight": None, "textual_loss_weight": None, "alarm_head_lr": None, "train": ["language_model"]}
    plain = unheaded | {"alarm_token_lr": None}
    plain_cot = Step(COT.recipe, unheaded)

    def released(step: Step) -> Step:
        weight = 0.1 / (mean_answer_tokens(work, step.form) + 4)  # its four extra labels a row count as tokens too
        return Step(step.recipe, {"visual_loss_weight": weight, "textual_loss_weight": weight})

    longer = COT.settings()["max_steps"] + GRPO.settings()["max_steps"]
    return {
        "no_alarm_tokens": Arm(
            "base",
            {"stage1": Step(WARM_UP.recipe, plain), "stage2": Step(AT_SFT.recipe, plain), "stage3": plain_cot, "stage4": GRPO},
            "no alarm tokens: the plain base, the same rows and steps without labels",
        ),
        "no_heads": Arm(
            "stage1",
            {
                "stage2": Step(AT_SFT.recipe, unheaded | {"train": ["language_model", "alarm_tokens"]}),
                "stage3": plain_cot,
                "stage4": GRPO,
            },
            "alarm tokens without heads: stages 2 and 3 without labels",
        ),
        "heads_dropped": Arm(
            "stage2", {"stage3": plain_cot, "stage4": GRPO}, "heads trained in stage 2 alone, as in the paper, and read after stage 4"
        ),
        "released_scaling": Arm(
            "stage1",
            {"stage2": released(AT_SFT), "stage3": released(COT), "stage4": GRPO},
            "the released code's scaling of the heads' loss: 0.1 / (answer tokens a row + 4) in place of 0.1",
        ),
        "dra_paper": Arm("stage3", {"stage4": Step(GRPO.recipe, {"reward": "dra_paper", "judge": None})}, "dra_paper in place of dra_safe"),
        "sft_alone": Arm("stage2", {"stage3": Step(COT.recipe, {"max_steps": longer})}, f"no GRPO: stage 3 for {longer} steps"),
    }


def mean_answer_tokens(work: Path, form: str) -> float:
    """Supervised tokens of a row, the closing one too; every word is a token."""
    with (work / "rows" / f"{form}.jsonl").open(encoding="utf-8") as lines:
        lengths = [len(json.loads(text)["completion"].split()) + 1 for text in lines]
    return sum(lengths) / len(lengths)


def write_rows(work: Path, seed: int) -> Path:
    """The rows of all forms as JSON Lines, drawn by this seed."""
    folder = work / "rows"
    for form, n in FORMS.items():
        if not (file := folder / f"{form}.jsonl").is_file():
            data.save(stage_rows(n, seed, form), file)
    return folder


def run_step(step: Step, model: Path, out: Path, rows: Path, seed: int) -> dict[str, Any]:
    """Train one stage, evaluate what it leaves, and return the evaluation."""
    if (done := out / DONE).is_file():
        return json.loads(done.read_text())
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    places = {"model": str(model), "data": [str(rows / f"{step.form}.jsonl")], "data_root": str(data_root()), "output_dir": str(out)}
    config = out / "recipe.yaml"
    config.write_text(yaml.safe_dump(step.settings() | places | {"seed": seed}), encoding="utf-8")
    start = time.perf_counter()
    step.train(config)
    return _evaluated(out, time.perf_counter() - start)


def _evaluated(folder: Path, seconds: float) -> dict[str, Any]:
    found = evaluate(folder) | {"train_seconds": round(seconds, 1)}
    (folder / DONE).write_text(json.dumps(found, indent=1) + "\n")
    return found


def run_base(work: Path, seed: int) -> dict[str, Any]:
    """The base of a seed in `work/base`, and with untrained alarm tokens in `work/alarm`; returns the base's evaluation."""
    out = work / "base"
    if not (out / DONE).is_file():
        start = time.perf_counter()
        shutil.rmtree(out, ignore_errors=True)
        pretrain(out, seed)
        _evaluated(out, time.perf_counter() - start)
    if not (work / "alarm" / "config.json").is_file():
        shutil.rmtree(work / "alarm", ignore_errors=True)
        build_alarm(out, work / "alarm", family="videollama3", seed=seed, licence="apache-2.0")
    return json.loads((out / DONE).read_text())


def run_arm(work: Path, seed: int, steps: Mapping[str, Step] = FULL, start: str = "alarm", arm: str = "") -> dict[str, dict[str, Any]]:
    """Every stage of an arm from the checkpoint `start` of this seed on: name of the stage -> its evaluation."""
    rows, model, found = write_rows(work, seed), work / start, {}
    for name, step in steps.items():
        out = work / arm / name if arm else work / name
        found[name] = run_step(step, model, out, rows, seed)
        model = out
    return found


def run_seed(work: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Base and four stages: name -> evaluation."""
    return {"base": run_base(work, seed)} | run_arm(work, seed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of this seed; what is done there is not done again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", help="an ablation, after the whole run of this seed")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.arm:
        arm = arms(options.work)[options.arm]
        found = run_arm(options.work, options.seed, arm.steps, arm.start, options.arm)
    else:
        found = run_seed(options.work, options.seed)
    for name, evaluation in found.items():
        print(options.arm or "whole", name, line(evaluation), flush=True)


def line(found: Mapping[str, Any]) -> str:
    """An evaluation in one line."""
    rates = {cell: found[cell]["value"] for cell in ("hh", "sh", "hs", "safeq", "utility")}
    rates |= {name: found[name] for name in ("auroc_visual", "auroc_textual")}
    words = [f"{name}={'-' if value is None else f'{value:.3f}'}" for name, value in rates.items()]
    return " ".join([*words, f"{found['train_seconds']:.0f}s"])


if __name__ == "__main__":
    main()
