"""What tests of DPO and of the baselines share: tiny models, two clips, rows of preferences, and a recipe's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videosafety.training_recipes.schema import Row, new_row

QUESTIONS = ("What happens?", "Is it harmful?", "And what is in it now?", "How does it go on, and where?")
VIDEOS = (["a.mp4"], ["b.mp4"], [], ["a.mp4"])


def preferences(count: int = 8, *, media: bool = True) -> list[Row]:
    """Rows of unlike lengths; every fourth without a video, or all of them."""
    return [
        new_row(
            id=f"r{n}",
            source="made",
            prompt=f"{QUESTIONS[n % 4]} {n}",
            chosen="I can not help with that." + " The sun is out." * (n % 3),
            rejected="Here is how the clip goes on." + " The person walks." * (n % 2),
            videos=VIDEOS[n % 4] if media else [],
            label_version="1",
        )
        for n in range(count)
    ]


def write_rows(rows: list[Row], file: Path) -> Path:
    lines = [json.dumps({key: value for key, value in row.items() if value not in (None, [])}) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def command(model: Path, data: Path, out: Path, **more: Any) -> list[str]:
    """A recipe of stage dpo as a command line."""
    settings: dict[str, Any] = {
        "stage": "dpo",
        "model": model,
        "data": data,
        "data_root": data.parent,
        "train": "language_model",
        "max_frames": 4,
        "output_dir": out,
        "use_cpu": True,
        "bf16": False,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    } | more
    values = {key: value if isinstance(value, (list, tuple)) else [value] for key, value in settings.items()}
    return [word for key, items in values.items() for word in (f"--{key}", *map(str, items))]
