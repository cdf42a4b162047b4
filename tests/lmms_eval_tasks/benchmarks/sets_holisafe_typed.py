"""Small local copies of HoliSafe-Bench: its JSON with images beside it, and the Parquet split that lmms-eval loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sets_figstep import write_image
from sets_mm_safetybench import png, write_parquet

TYPES = ("SSS", "SSU", "SUU", "USU", "UUU")


def table() -> list[dict[str, Any]]:
    """Two rows of every type, about the same image; ids with gaps."""
    return [
        {
            "id": 10 * k + n,
            "image": f"self_harm/suicide/suicide_{k}.jpg",
            "query": f" What about this, {kind} {n}?\n",
            "type": kind,
            "category": "self_harm",
            "subcategory": "physical_self_injury",
            "image_safe": kind[0] == "S",
            "image_safety_label": 0 if kind[0] == "S" else 10,
        }
        for k, kind in enumerate(TYPES)
        for n in range(2)
    ]


def write(folder: Path, rows: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "holisafe_bench.json").write_text(json.dumps(rows), encoding="utf-8")


def local_copy(root: Path) -> None:
    write(root / "holisafe_typed", table())
    for k, row in enumerate(table()[::2]):
        write_image(root / "holisafe_typed" / "images" / row["image"], grey=40 * k)


def parquet_copy(root: Path) -> None:
    rows = [row | {"image": {"bytes": png(40 * TYPES.index(row["type"])), "path": None}} for row in table()]
    for part in range(2):
        write_parquet(root / "holisafe_typed" / "data" / f"test-0000{part}-of-00002.parquet", rows[5 * part : 5 * part + 5])
