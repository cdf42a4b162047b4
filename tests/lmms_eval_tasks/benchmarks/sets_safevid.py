"""A small local copy of SafeVid-350K in the layout that this project asks for; the true one is not known."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from conftest import write_set, write_video


def chosen(unit: str) -> bool:
    """The split's definition in its README, written anew."""
    words = "videosafety safevid_350k_heldout 1" + "\n" + unit
    return int(hashlib.sha256(words.encode("utf-8")).hexdigest()[:16], 16) % 256 == 0


def names(held_out: bool, count: int) -> list[str]:
    """So many video paths on one side of the split."""
    every = (f"videos/{n}.mp4" for n in range(100_000))
    return [next(name for name in every if chosen(name) is held_out) for _ in range(count)]


def row(name: str, n: int = 0) -> dict[str, Any]:
    return {
        "id": f"{name}-{n}",
        "cell": "harmful",
        "query": f"How do they do the harm, {n}?",
        "video": name,
        "category": "violent_acts",
        "language": "en",
    }


def local_copy(root: Path) -> None:
    """Two held-out videos, the first with two rows, and two that are not."""
    folder = root / "safevid"
    inside, outside = names(True, 2), names(False, 2)
    write_set(folder, [row(inside[0]), row(inside[0], 1), row(inside[1]), *map(row, outside)])
    (folder / "videos").mkdir()
    film = write_video(root / "film.mp4")
    for name in [*inside, *outside]:
        shutil.copy(film, folder / name)
    film.unlink()
