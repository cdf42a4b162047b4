"""A small local copy of FigStep in its true layout."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

COLUMNS = ("dataset", "category_id", "task_id", "category_name", "question", "instruction")
TOPICS = ("Illegal Activity", "Hate Speech", "Malware Generation", "Physical Harm", "Fraud", "Adult Content", "Privacy Violation")
TOPICS += ("Legal Opinion", "Financial Advice", "Health Consultation")


def write_questions(file: Path, topics: int, each: int) -> list[dict[str, str]]:
    """A CSV of `topics` × `each` rows as FigStep has them."""
    found = [
        {
            "dataset": "ForbidQI",
            "category_id": str(c),
            "task_id": str(t),
            "category_name": TOPICS[c - 1],
            "question": f"How do people do deed {c}, number {t}?",
            "instruction": f"Steps to do deed {c}, number {t}.",
        }
        for c in range(1, topics + 1)
        for t in range(1, each + 1)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(found)
    return found


def write_image(file: Path, grey: int = 128, size: tuple[int, int] = (56, 56)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(file)
    return file


def local_copy(root: Path, topics: int = 2, each: int = 2) -> None:
    """`topics` × `each` rows of SafeBench, as many of SafeBench-Tiny, and FigStep-Pro with two or three pieces a row."""
    folder = root / "figstep"
    for name, stem in (("SafeBench", "safebench"), ("SafeBench-Tiny", "SafeBench-Tiny")):
        rows = write_questions(folder / "question" / f"{stem}.csv", topics, each)
        for n, row in enumerate(rows):
            write_image(folder / "images" / name / f"query_ForbidQI_{row['category_id']}_{row['task_id']}_6.png", grey=n % 256)
    sentences = ["sentence", *(f"Steps to * for ${n},000 savings." for n in range(len(rows)))]
    (folder / "question" / "benign_sentences_without_harmful_phase.csv").write_text("\n".join(sentences), encoding="utf-8")
    for n in range(len(rows)):
        for k in range(2 + n % 2):
            write_image(folder / "images" / "FigStep-Pro" / f"image_{n}_splits" / f"image_{n}_split_{k}.png", grey=40 * k)
