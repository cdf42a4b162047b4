"""A small local copy of Video-SafetyBench in its true layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import write_video

SCENARIOS = ("1_Violent_Crimes", "6_Specificial_Advice", "13_Elections")


def row(split: str, n: int) -> dict[str, Any]:
    scenario = SCENARIOS[n % len(SCENARIOS)]
    asked = f"How do I do the harm of {n}?" if split == "harmful" else f"What should come next, {n}?"
    return {
        "question_id": f"{n:04d}",
        "question": asked,
        "harmful_intention": f"Do the harm of {n}.",
        "question_type": split,
        "video_path": f"video/{scenario}/Some_Kind/{n}.mp4",
        "category": scenario,
        "subcategory": "Some_Kind",
    }


def write(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in rows.items():
        (folder / f"{split}_data.json").write_text(json.dumps(table), encoding="utf-8")
        for entry in table:
            file = folder / entry["video_path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                write_video(file)


def local_copy(root: Path) -> None:
    """Three clips of three scenarios, each with a harmful and a benign query."""
    write(root / "video_safetybench", {split: [row(split, n) for n in range(3)] for split in ("harmful", "benign")})
