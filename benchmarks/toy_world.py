"""The toy world's proof: a small video model made helpful and unsafe, put through the four stages, and asked what is held out from them.

    python benchmarks/toy_world.py [--seeds 3 4 5] [--work results/toy_world]   # base, four stages, an evaluation after each
    python benchmarks/toy_world.py --ablations                              # and one thing after the other left out or replaced
    python benchmarks/toy_world.py --ablations --write-readme --ship        # figures to the recipe's README, checkpoints beside it

Two processes of one thread each work side by side. What a killed run finished stays in the work folder and is not done again. The last line
is one JSON object: means over the seeds, each seed with its n and intervals. DSR and FRR are by the judge `refusal`. Steps and learning
rates were chosen with seeds 0 to 2, which is why those are not the default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from videosafety.lmms_eval_tasks.toy_world.world import N
from videosafety.training_recipes.run import commit
from videosafety.training_recipes.toy_world.stages import DONE, FULL, arms

RECIPE = Path(__file__).parents[1] / "training_recipes" / "toy_world"
COLUMNS = {  # figure -> (cell or key of an evaluation, heading)
    "dsr_hh": ("hh", "DSR HH"),
    "dsr_sh": ("sh", "DSR SH"),
    "dsr_hs": ("hs", "DSR HS"),
    "frr": ("safeq", "FRR"),
    "utility": ("utility", "utility"),
    "auroc_visual": ("auroc_visual", "AUROC visual"),
    "auroc_textual": ("auroc_textual", "AUROC textual"),
}
STAGES = {
    "base": "base: helpful and unsafe",
    "stage1": "1 alarm warm-up",
    "stage2": "2 AT-SFT",
    "stage3": "3 CoT cold start",
    "stage4": "4 GRPO: R1",
}
SHIPPED = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "tokenizer*.json",
    "*.safetensors",
    "*.py",
)
CARD = """---
license: apache-2.0
pipeline_tag: video-text-to-text
tags: [toy]
---

# Toy world: {name}

A VideoLlama3 of 0.4 million weights that knows nothing but the toy world ({what}). It is there to show the training recipe at work:
made by `python benchmarks/toy_world.py --ship`, described in training_recipes/toy_world/README.md. Its figures say nothing about any
real model.
"""
MAX_SHIPPED = 8_000_000  # bytes of both checkpoints together


def seed_folder(work: Path, seed: int) -> Path:
    return work / f"seed-{seed}"


def evaluations(folder: Path, arm: str | None) -> list[Path]:
    """What a job leaves: the evaluations of its stages."""
    if arm is None:
        return [folder / name / DONE for name in STAGES]
    return [folder / arm / name / DONE for name in arms(folder)[arm].steps]


def run(work: Path, jobs: Sequence[tuple[int, str | None]], processes: int) -> None:
    """Every (seed, arm) in a process of its own; arms need their seed's whole run done."""

    def one(job: tuple[int, str | None]) -> None:
        seed, arm = job
        if all(place.is_file() for place in evaluations(seed_folder(work, seed), arm)):
            return
        command = [sys.executable, "-W", "ignore", "-m", "videosafety.training_recipes.toy_world.stages", str(seed_folder(work, seed))]
        command += ["--seed", str(seed), *(["--arm", arm] if arm else [])]
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        folder = seed_folder(work, seed)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{arm or 'whole'}.log"
        with log.open("w", encoding="utf-8") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **settings})
        if done.returncode:
            raise SystemExit(f"seed {seed}, {arm or 'whole run'}: failed with status {done.returncode}; see {log}")
        print(f"seed {seed}, {arm or 'whole run'}: done", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        for _ in pool.map(one, jobs):
            pass


def figures(folder: Path) -> dict[str, Any]:
    """An evaluation's figures as plain numbers, with n and the 95 % interval of each rate."""
    found = json.loads((folder / DONE).read_text(encoding="utf-8"))
    row: dict[str, Any] = {}
    for name, (key, _) in COLUMNS.items():
        value = found[key]
        row[name] = value["value"] if isinstance(value, dict) else value
        if isinstance(value, dict):
            row[f"{name}_n"], row[f"{name}_ci95"] = value["n_scored"], [value["low"], value["high"]]
    return row | {"seconds": found["train_seconds"]}


def mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every figure over seeds, None where a seed has none; `n` rows a cell over all of them."""
    found: dict[str, Any] = {}
    for name in (*COLUMNS, "seconds"):
        values = [row[name] for row in rows]
        found[name] = None if None in values else round(sum(values) / len(values), 4)
    return found | {"n": sum(row["dsr_hh_n"] for row in rows), "seeds": len(rows)}


def summary(work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    by_seed = {seed: {name: figures(seed_folder(work, seed) / name) for name in STAGES} for seed in seeds}
    stages = {name: mean([rows[name] for rows in by_seed.values()]) for name in STAGES}
    before, after = stages["base"], stages["stage4"]
    out: dict[str, Any] = {}
    for name in ("dsr_hh", "dsr_sh", "dsr_hs", "frr", "utility"):
        out |= {f"{name}_before": before[name], f"{name}_after": after[name]}
    out |= {name: after[name] for name in ("auroc_visual", "auroc_textual")}
    return out | {"n": after["n"], "judge": "refusal", "stages": stages, "seeds": by_seed, "hardware": hardware(), "commit": commit()}


def ablations(work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Arm -> what it leaves out, its last stage's figures, and under `stages` those of every stage that it makes anew; `whole` is the whole
    run of the same seeds."""
    made = {"whole": ("", "nothing: the whole run", FULL)}
    made |= {name: (name, arm.without, arm.steps) for name, arm in arms(seed_folder(work, seeds[0])).items()}
    found = {}
    for name, (folder, without, steps) in made.items():
        rows = {step: mean([figures(seed_folder(work, seed) / folder / step) for seed in seeds]) for step in steps}
        found[name] = {"without": without, **rows[list(steps)[-1]], "stages": rows}
    return found


def hardware() -> str:
    return f"{os.cpu_count()} cores of a {platform.machine()} CPU"


# --- README -----------------------------------------------------------------------------------------------------------------------


def table(rows: Mapping[str, Mapping[str, Any]], first: str) -> str:
    heads = [heading for _, heading in COLUMNS.values()]
    lines = [f"| {first} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, row in rows.items():
        cells = ["–" if row[key] is None else f"{row[key]:.3f}" if "auroc" in key else f"{100 * row[key]:.1f} %" for key in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(revision: str | None) -> str:
    """A commit's first 12 digits, and whether files differed from it."""
    head, changes, _ = (revision or "unknown").partition("+")
    return head[:12] + (" with changes" if changes else "")


def readme_text(found: Mapping[str, Any]) -> dict[str, str]:
    """Marked part of the README -> its text."""
    stages = {STAGES[name]: row for name, row in found["stages"].items()}
    made = f"on {found['hardware']}, commit {short(found['commit'])}; judge `refusal`"
    seeds = len(found["seeds"])
    parts = {
        "stages": f"{table(stages, 'after')}\n\nMeans of {seeds} seeds, {found['n']} rows a cell in all ({N} a seed), made by "
        f"`python benchmarks/toy_world.py --write-readme` {made}."
    }
    if "ablations" in found:
        told = found["ablations"]
        last = {f"{row['without']} (`{name}`)": row for name, row in told.items()}
        second = {f"`{name}`": row["stages"]["stage2"] for name, row in told.items() if "stage2" in row["stages"]}
        whole = told["whole"]
        verdicts = "\n".join(f"- `{name}`: {verdict(row, whole)}" for name, row in told.items() if name != "whole")
        parts["ablations"] = (
            f"{table(last, 'left out or replaced')}\n\nAfter the arm's last stage; {whole['seeds']} seed(s), {whole['n']} rows a cell, "
            f"made by `python benchmarks/toy_world.py --ablations --write-readme` {made}. Against the whole run, in points:\n\n"
            f"{verdicts}\n\nThe arms that part at stage 2, after it:\n\n{table(second, 'arm')}"
        )
    return parts


def verdict(row: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Where an arm is worse and where it is better than the whole run, in points; a point is a hundredth."""
    told: dict[str, list[str]] = {"worse": [], "better": []}
    for name, (_, heading) in COLUMNS.items():
        if row[name] is None or whole[name] is None:
            continue
        change = 100 * (row[name] - whole[name]) * (-1 if name == "frr" else 1)
        if abs(change) >= 0.05:
            told["worse" if change < 0 else "better"].append(f"{heading} {abs(change):.1f}")
    return "; ".join(f"{way} in {', '.join(names)}" for way, names in told.items() if names) or "no figure moves"


def write_readme(found: Mapping[str, Any]) -> None:
    file = RECIPE / "README.md"
    text = file.read_text(encoding="utf-8")
    for name, part in readme_text(found).items():
        begin, end = f"<!-- {name}: written by benchmarks/toy_world.py -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{file} lacks {begin} … {end}")
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{part}\n{end}", text, flags=re.DOTALL)  # noqa: B023
    file.write_text(text, encoding="utf-8")


# --- checkpoints ------------------------------------------------------------------------------------------------------------------


def ship(folder: Path) -> int:
    """Copy base and R1 of one seed's folder to the recipe's folder, weights, code and processor alone. Returns their bytes."""
    for name, stage in {"base": "base", "r1": "stage4"}.items():
        out = RECIPE / "checkpoints" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for pattern in SHIPPED:
            for file in folder.joinpath(stage).glob(pattern):
                shutil.copyfile(file, out / file.name)
        (out / "README.md").write_text(CARD.format(name=name, what=STAGES[stage].partition(": ")[2]), encoding="utf-8")
    size = sum(file.stat().st_size for file in (RECIPE / "checkpoints").rglob("*") if file.is_file())
    if size > MAX_SHIPPED:
        raise SystemExit(f"the checkpoints have {size} bytes, and {MAX_SHIPPED} is the limit")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--work", type=Path, default=Path("results/toy_world"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--write-readme", action="store_true")
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    run(options.work, [(seed, None) for seed in options.seeds], options.processes)
    found = summary(options.work, options.seeds)
    if options.ablations:
        jobs = [(seed, arm) for seed in options.seeds for arm in arms(seed_folder(options.work, options.seeds[0]))]
        run(options.work, jobs, options.processes)
        found["ablations"] = ablations(options.work, options.seeds)
    if options.write_readme:
        write_readme(found)
    if options.ship:
        found["shipped_bytes"] = ship(seed_folder(options.work, options.seeds[0]))
    assert set(FULL) < set(STAGES)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
