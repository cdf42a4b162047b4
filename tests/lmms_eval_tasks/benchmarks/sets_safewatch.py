"""A small local copy of SafeWatch-Bench in its true layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import write_video

# (part, category, sub-category) -> labels of its clips
FILES: dict[tuple[str, str, str], list[list[int]]] = {
    ("real", "C1", "Evident"): [[1], [1, 3]],
    ("real", "C1", "benign"): [[]],
    ("real", "C3", "fighting"): [[3]],
    ("genai", "C5", "drugs"): [[5]],
    ("genai", "C6", "benign"): [[]],
}


def row(part: str, category: str, name: str, n: int, labels: list[int]) -> dict[str, Any]:
    path = f"{part}/videos/{category}/{name}_benchmark/{n}.mp4"
    return {"video_path": path, "labels": labels, "subcategories": [name], "video_content": "a clip", "violate_reason": ""}


def table_file(folder: Path, part: str, category: str, name: str) -> Path:
    return folder / part / category / f"{name}_benchmark.json"


def local_copy(root: Path) -> None:
    """Four real and two generated clips, and one entry whose clip is not known."""
    folder = root / "safewatch"
    for (part, category, name), all_labels in FILES.items():
        table = [row(part, category, name, n, labels) for n, labels in enumerate(all_labels)]
        for entry in table:
            (folder / entry["video_path"]).parent.mkdir(parents=True, exist_ok=True)
            write_video(folder / entry["video_path"])
        if name == "fighting":
            table.append(table[0] | {"video_path": "real/videos/C3/fighting_benchmark/gone.unknown_video"})
        table_file(folder, part, category, name).parent.mkdir(parents=True, exist_ok=True)
        table_file(folder, part, category, name).write_text(json.dumps(table), encoding="utf-8")
