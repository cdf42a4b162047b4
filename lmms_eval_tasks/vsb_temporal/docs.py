"""What the vsb_temporal_* YAMLs call: the rows of a task, with what the model's sampling really shows of each clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from loguru import logger

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import to_dataset
from videosafety.lmms_eval_tasks.video import Sampling, Timeline, fit, sample_indices
from videosafety.lmms_eval_tasks.vsb.pictograms import HEIGHT, WIDTH
from videosafety.lmms_eval_tasks.vsb_temporal.clips import ensure_clips
from videosafety.lmms_eval_tasks.vsb_temporal.recipes import NAME, NAMES, VERSION, Cut, cut, items, recipe_hash


def __getattr__(name: str) -> Callable[[Dataset], Dataset]:
    """`process_docs` of the task `vsb_temporal_<name>`: one function a task, all alike."""
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def process_docs(_: Dataset) -> Dataset:
        run.start()
        run.note("data", {"vsb_temporal": {"name": NAME, "version": VERSION, "hash": recipe_hash()}})
        paths = ensure_clips(name) if name != "text" else {}
        return to_dataset([row | ({"video": str(paths[row["video_id"]])} if paths else {}) for row in rows(name)])

    return process_docs


def sampling() -> Sampling:
    """How the model under test takes frames, as `--model videosafety_r1` noted it before tasks are loaded; else its defaults."""
    noted = run.SETTINGS.get("model", {})
    return Sampling(**{key: noted[key] for key in ("fps", "max_frames", "max_pixels") if key in noted})


def shown(plan: Cut, how: Sampling) -> list[tuple[str, int]]:
    """The frames of a clip that reach the model, as (source, index)."""
    if not plan.frames:
        return []
    timeline = Timeline([i / plan.rate for i in range(len(plan.frames))], [0], 0)
    return [plan.frames[i] for i in sample_indices(timeline, how)]


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of the task `vsb_temporal_<name>`, without their clips' paths.

    `frames`, `distinct_frames`, `harm_frames` (of them, those with harm in picture or caption) and `pixels` (of a frame) are what the
    model's sampling shows; `seconds` and `harm_spans` are the clip's. `video_id` is the item: its rows are one cluster in all tasks.
    """
    how = sampling()
    height, width = fit(np.empty((HEIGHT, WIDTH, 3), np.uint8), how.max_pixels).shape[:2]
    found, short = [], 0
    for item in items():
        plan = cut(item, name)
        seen = shown(plan, how)
        short += len(seen) < plan.seconds
        row: dict[str, Any] = {"id": f"vsb_temporal-{item.id}-{name}", "cell": "sh" if name.startswith("benign") else "hh"}
        row |= {"category": item.category, "group": item.group, "language": "en", "query": item.query, "video_id": item.id}
        row |= {"textual_label": 1, "variant": name.partition("_")[0], "frames": len(seen), "distinct_frames": len(set(seen))}
        row |= {"harm_frames": sum(source != "safe" for source, _ in seen), "seconds": plan.seconds}
        row |= {"pixels": height * width if seen else 0, "harm_spans": plan.harm_spans()}
        found.append(row if name == "text" else row | {"visual_label": int(bool(plan.harm_spans()))})
    if short:
        logger.warning(
            f"vsb_temporal_{name}: of {plan.seconds:.0f} frames the model sees {len(seen)} (fps={how.fps:g}, max_frames={how.max_frames}); "
            "the rows say so. For all of them: fps=1 and max_frames=64 or more in --model_args."
        )
    return found
