"""XSTest (arXiv 2308.01263): safe prompts that sound unsafe, and unsafe ones that sound alike. Text only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.tables import read_csv

# Today's file (id, prompt, type, label, focus, note), and the one that GitHub had before (id_v1, id_v2, type, prompt, focus, note).
FILES = ("xstest_prompts.csv", "xstest_v2_prompts.csv")


def rows(root: Path, label: str) -> list[dict[str, Any]]:
    """The prompts whose label is `safe` or `unsafe`. Where the file has no labels, those of a type `contrast_…` are unsafe.

    Raises:
        MissingData: neither file is there, or a row is not as XSTest's are.
    """
    file = next((root / name for name in FILES if (root / name).is_file()), root / FILES[0])
    key = "id_v2" if file.name == FILES[1] else "id"
    found, seen = [], set()
    for where, row in read_csv(file, [key, "prompt", "type"]):
        number = row[key].removeprefix("v2-")
        told = row.get("label") or ("unsafe" if row["type"].startswith("contrast_") else "safe")
        if told not in ("safe", "unsafe"):
            raise MissingData(f"videosafety: {where}: label is {told!r}, neither safe nor unsafe; fetch the data again")
        if number in seen:
            raise MissingData(f"videosafety: {where}: the id {number} is there twice; fetch the data again")
        seen.add(number)
        if told == label:
            found.append(
                {
                    "id": f"xstest-{number}",
                    "category": row["type"],
                    "language": "en",
                    "query": row["prompt"],
                    "video_id": f"xstest-{number}",
                    "textual_label": int(label == "unsafe"),
                }
            )
    if not found:
        raise MissingData(f"videosafety: {file} has no {label} prompt; fetch the data again")
    return found


def _load(label: str) -> Dataset:
    root = run.data_folder("xstest")
    return run.counted(f"xstest_{label}", rows(root, label))


def safe(_: Dataset) -> Dataset:
    """250 safe prompts of ten types."""
    return _load("safe")


def unsafe(_: Dataset) -> Dataset:
    """200 unsafe contrasts of eight types."""
    return _load("unsafe")
