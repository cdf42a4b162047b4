"""A small local copy of MSSBench in its true layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sets_figstep import write_image


def chat_record(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "safe_image_path": f"{2 * n}.jpg",
        "unsafe_image_path": f"{2 * n + 1}.jpg",
        "intent": f"swing a bat, {n}",
        "unsafe_image": f"A crowded bus, {n}.",
        "Type": "property" if n % 2 else "harmful",
        "queries": [f"How do I swing a bat, {n}?", f"Which grip is best, {n}?"],
    } | changes


def embodied_record(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "task": "place",
        "category": "property",
        "safe_instruction": f"Heat the bread, {n}.",
        "safe_instructions": [f"Heat the bread, {n}, wording {k}." for k in range(3)],
        "unsafe_instruction": f"Heat the fork, {n}.",
        "unsafe_instructions": [f"Heat the fork, {n}, wording {k}." for k in range(3)],
        "safe": f"safe_{n}.png",
        "unsafe": f"unsafe_{n}.png",
        "observation_safe": f"A plate with bread, {n}.",
        "observation_unsafe": f"A plate with a fork, {n}.",
    } | changes


def write(folder: Path, chat: list[dict[str, Any]], embodied: list[dict[str, Any]], name: str = "combined.json") -> None:
    for n, record in enumerate(chat):
        write_image(folder / "chat" / record["safe_image_path"], grey=20 * n)
        write_image(folder / "chat" / record["unsafe_image_path"], grey=20 * n + 10)
    for n, record in enumerate(embodied):
        write_image(folder / "embodied" / record["safe"], grey=20 * n)
        write_image(folder / "embodied" / record["unsafe"], grey=20 * n + 10)
    (folder / name).write_text(json.dumps({"chat": chat, "embodied": embodied}), encoding="utf-8")


def local_copy(root: Path) -> None:
    """Two chat records with two queries each, and one embodied record with three wordings."""
    write(root / "mssbench", [chat_record(0), chat_record(1)], [embodied_record(0)])
