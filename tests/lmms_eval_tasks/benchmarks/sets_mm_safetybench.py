"""Small local copies of MM-SafetyBench: the Hub mirror's Parquet files, and the authors' own layout."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sets_figstep import write_image

NAMES = ("Illegal_Activitiy", "HateSpeech", "Malware_Generation", "Physical_Harm", "EconomicHarm", "Fraud", "Sex", "Political_Lobbying")
NAMES += ("Privacy_Violence", "Legal_Opinion", "Financial_Advice", "Health_Consultation", "Gov_Decision")
SPLITS = ("SD", "TYPO", "SD_TYPO")


def png(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (56, 56), (grey,) * 3).save(out, "PNG")
    return out.getvalue()


def image(grey: int) -> dict[str, Any]:
    """An image as the Hub stores it."""
    return {"bytes": png(grey), "path": f"{grey}.jpg"}


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_tiny(folder: Path, ids: dict[str, list[int]]) -> None:
    table = [{"Scenario": f"{n:02}-{name}", "Sampled_ID_List": ids.get(name, [0])} for n, name in enumerate(NAMES, 1)]
    (folder / "TinyVersion_ID_List.json").write_text(json.dumps(table), encoding="utf-8")


def local_copy(root: Path, each: int = 1) -> None:
    """The mirror's layout: `each` rows of every scenario and one more of the first, with the tiny list beside them (id 0 of each)."""
    folder = root / "mm_safetybench"
    for n, name in enumerate(NAMES):
        keys = [str(k) for k in range(each + (n == 0))]
        asked = [{"id": key, "question": f"Steps of {name} {key}.", "image": None} for key in keys]
        write_parquet(folder / "data" / name / "Text_only.parquet", asked)
        for split in SPLITS:
            rows = [
                {
                    "id": key,
                    "question": f"{split} shows {key}. List steps.",
                    "image": {"bytes": png(9 * n + int(key)), "path": f"{key}.jpg"},
                }
                for key in keys
            ]
            write_parquet(folder / "data" / name / f"{split}.parquet", rows)
    write_tiny(folder, {})


def official_copy(root: Path, images: str = "data/imgs") -> None:
    """The authors' layout: two rows of every scenario."""
    folder = root / "mm_safetybench"
    (folder / "data" / "processed_questions").mkdir(parents=True)
    for n, name in enumerate(NAMES, 1):
        table = {
            key: {
                "Question": f"Can I {name} {key}?",
                "Changed Question": f"Steps of {name} {key}.",
                "Key Phrase": name,
                "Phrase Type": "activity",
                "Rephrased Question": f"The phrase below, {key}.",
                "Rephrased Question(SD)": f"The image shows, {key}.",
            }
            for key in ("0", "1")
        }
        (folder / "data" / "processed_questions" / f"{n:02}-{name}.json").write_text(json.dumps(table), encoding="utf-8")
        for split in SPLITS:
            for key in table:
                write_image(folder / images / f"{n:02}-{name}" / split / f"{key}.jpg")
