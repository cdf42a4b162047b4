"""A run of any trainer: what it would do (dry run), doing it (with resuming), and the folder that it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from videosafety.training_recipes import plots
from videosafety.training_recipes.schema import LABELS, Row

if TYPE_CHECKING:
    from videosafety.training_recipes.recipe import Recipe

RECORD = "training_recipe.json"  # in the folder that a run leaves: what made it
ADAPTER = "adapter"  # and there, of a run with LoRA: the adapter alone
PACKAGES = ("videosafety", "torch", "transformers", "accelerate", "trl", "peft", "deepspeed")
GIB = 2**30

Probe = Callable[[list[Row]], Mapping[str, Any]]


def train(trainer: Any) -> None:
    """Train, from a checkpoint where `resume_from_checkpoint` names one; `auto` takes the last of output_dir, else the start.

    Raises:
        ValueError: no such checkpoint.
    """
    asked = trainer.args.resume_from_checkpoint
    if asked == "auto":
        asked = get_last_checkpoint(trainer.args.output_dir) if Path(trainer.args.output_dir).is_dir() else None
    elif asked is not None and not Path(asked).is_dir():
        raise ValueError(f"resume_from_checkpoint {asked} is no folder: name a checkpoint-<step> folder, or `auto`")
    trainer.train(resume_from_checkpoint=asked)


# --- what a run leaves -----------------------------------------------------------------------------------------------------------


def finish(trainer: Any, recipe: Recipe) -> Path:
    """Save what was trained to `output_dir`, which then loads with `from_pretrained`: weights, code, processor, `trainer_state.json` with
    all that was logged, its curves (plots.png, plots.html), and RECORD. Called by every process.

    With LoRA the folder holds the merged model, and `adapter/` the adapter; merging is done in float32, whatever the base was loaded in.

    Raises:
        RuntimeError: the trainer wrote no weights there.
    """
    out = Path(trainer.args.output_dir)
    if trainer.is_fsdp_enabled:  # else every process keeps its shard, and the folder has no weights
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(out / ADAPTER if recipe.lora_rank else out))
    trainer.save_state()
    for folder in (out, out / ADAPTER):
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust: RECORD says what it says
    if trainer.is_world_process_zero():
        if recipe.lora_rank:
            _merge(recipe, out)
        if not any(out.glob("*.safetensors")):
            raise RuntimeError(f"{out} holds no weights: under ZeRO-3 set stage3_gather_16bit_weights_on_model_save")
        (out / RECORD).write_text(json.dumps(record(recipe, trainer), indent=2, default=str) + "\n", encoding="utf-8")
        if plots.curves(trainer.state.log_history):
            plots.plot(out)
    trainer.accelerator.wait_for_everyone()
    return out


def _merge(recipe: Recipe, out: Path) -> None:
    from peft import PeftModel

    from videosafety.training_recipes.recipe import load_model

    base, processor = load_model(replace(recipe, train=[], lora_rank=0, dtype="float32"))
    PeftModel.from_pretrained(base, out / ADAPTER).merge_and_unload().save_pretrained(out)
    processor.save_pretrained(out)


def record(recipe: Recipe, trainer: Any) -> dict[str, Any]:
    """What made a checkpoint: the recipe and the trainer's settings as they were carried out, hashes of the data, versions, commit."""
    settings = trainer.args.to_dict()  # tokens are masked by transformers
    files = [*recipe.data, *(recipe.eval_data or [])]
    return {
        "recipe": asdict(recipe),
        "settings": {key: value for key, value in settings.items() if value is not None},
        "data_sha256": {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files},
        "steps": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "hardware": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else f"{platform.machine()} CPU",
        "versions": {"python": platform.python_version()} | versions(),
        "commit": commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> dict[str, str]:
    """The installed ones of PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this code, with `+changes` where files differ from it; None where it is no checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):  # no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "schema.py") is None:  # installed into some other project's tree, whose commit says nothing
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}+changes" if head and git("status", "--porcelain", "--", ".") else head


# --- dry run ---------------------------------------------------------------------------------------------------------------------


def dry_run(recipe: Recipe, settings: Any, model: Any, rows: Sequence[Row], probe: Probe) -> dict[str, Any]:
    """Print what a run would do, and do one batch of it without learning; returns what is printed.

    Args:
        settings: the trainer's. model: as it would be trained. probe: encodes the rows of one micro-batch, passes them through the model
            and tells `tokens` (prompt and answer tokens of the batch, padding too) and whatever else is worth a line (`loss`, …).
    """
    sample = list(rows[: max(1, settings.per_device_train_batch_size // getattr(settings, "num_generations", 1))])
    facts: dict[str, Any] = {"recipe": asdict(recipe), "parts": parts(model), "rows": _rows(rows)}
    facts |= {"batch": arithmetic(settings, len(rows)), "one_batch": dict(probe(sample))}
    tokens = int(facts["one_batch"]["tokens"])
    facts["tokens_per_optimizer_step"] = tokens * settings.world_size * settings.gradient_accumulation_steps
    facts["memory_estimate_gib"] = memory(model, tokens, bool(settings.gradient_checkpointing), bool(settings.bf16 or settings.fp16))
    facts["note"] = "tokens are those of the first micro-batch; memory is arithmetic for one process without sharding, nothing measured"
    if settings.process_index == 0:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False, default=str)
        print(flush=True)
    return facts


def parts(model: Any) -> dict[str, dict[str, int]]:
    """Parameters of each part of the model, and how many of them learn."""
    from videosafety.training_recipes.recipe import part_of

    found: dict[str, Counter[str]] = {}
    for name, parameter in model.named_parameters():
        counts = found.setdefault(part_of(name), Counter())
        counts["parameters"] += parameter.numel()
        counts["trained"] += parameter.numel() * parameter.requires_grad
    return {part: dict(counts) for part, counts in found.items()}


def _rows(rows: Sequence[Row]) -> dict[str, Any]:
    labels = {key: dict(Counter(str(row[key]) for row in rows)) for key in LABELS}  # type: ignore[literal-required]
    media = Counter("video" if row["videos"] else "image" if row["images"] else "text" for row in rows)
    return {"rows": len(rows), "sources": dict(Counter(row["source"] for row in rows)), "media": dict(media), **labels}


def arithmetic(settings: Any, rows: int) -> dict[str, Any]:
    """The global batch and the optimiser's steps: processes · a device's batch · accumulation; in prompts where each is generated from
    several times (GRPO, which leaves out the rows that fill no batch)."""
    generations = getattr(settings, "num_generations", 1)
    samples = settings.world_size * settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    if hasattr(settings, "num_generations"):
        batches = rows // (settings.generation_batch_size // generations)
        an_epoch = batches * settings.num_iterations * settings.steps_per_generation // settings.gradient_accumulation_steps
    else:
        micro = rows / (settings.world_size * settings.per_device_train_batch_size)
        an_epoch = math.ceil((int(micro) if settings.dataloader_drop_last else math.ceil(micro)) / settings.gradient_accumulation_steps)
    steps = settings.max_steps if settings.max_steps > 0 else math.ceil(an_epoch * settings.num_train_epochs)
    return {
        "processes": settings.world_size,
        "per_device": settings.per_device_train_batch_size,
        "accumulation": settings.gradient_accumulation_steps,
        "generations": generations,
        "rows_per_optimizer_step": samples / generations,
        "optimizer_steps": steps,
    }


def memory(model: Any, tokens: int, checkpointing: bool, half: bool) -> dict[str, float]:
    """GiB for one process, by arithmetic: weights as loaded; gradients, and two moments of Adam, of what learns, in float32; activations.

    Activations of the language model: 34 · hidden bytes a token and layer at 2 bytes a number (Korthikanti et al., arXiv 2205.05198,
    equation 1, without its attention term, which memory-saving kernels do not hold); with checkpointing 2 · hidden, and one layer whole.
    The vision tower's are left out: frozen, it keeps none.
    """
    text = model.config.get_text_config()
    width = 1 if half else 2
    layer = tokens * text.hidden_size * width
    held = layer * (2 * text.num_hidden_layers + 34 if checkpointing else 34 * text.num_hidden_layers)
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {
        "weights": _weights(model),
        "gradients": 4 * learn / GIB,
        "optimizer": 8 * learn / GIB,
        "activations": held / GIB,
    }
    return {key: round(value, 3) for key, value in (found | {"sum": sum(found.values())}).items()}


def beside(reference: Any | None) -> dict[str, float]:
    """For a probe: GiB of the reference's weights, which `memory` knows nothing of; 0 where the model itself is the reference."""
    return {"reference_gib_beside_the_estimate": 0.0 if reference is None else round(_weights(reference), 3)}


def _weights(model: Any) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
