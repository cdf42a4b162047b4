"""The toy world's rows as evaluation reads them, and its clips, drawn once into the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.toy_world import draw, world

NAME = "Toy world"


@lru_cache(maxsize=1)
def data_hash() -> str:
    """First 16 hex digits of the SHA-256 over the files that say what the world is: goes into every result."""
    digest = hashlib.sha256()
    for name in ("world.py", "draw.py"):
        digest.update(Path(__file__).with_name(name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def rows(cell: str) -> list[dict[str, Any]]:
    """The rows of a cell of `world.CELLS` or of `world.UTILITY`, without their clips' paths."""
    found = []
    for n, row in enumerate(world.evaluated(cell)):
        clip: world.Clip = row.pop("clip")
        found.append({"id": f"toy-{cell}-{n}", "cell": cell, "language": "en", "video_id": clip.id} | row)
    return found


def ensure_clips(shown: Iterable[world.Clip]) -> dict[str, Path]:
    """Clip id -> file; draws what is not in the cache. Safe to interrupt, and to run twice at once."""
    folder = cache_dir() / "toy_world" / data_hash()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {clip: folder / f"{clip.id}.mp4" for clip in dict.fromkeys(shown)}
    with FileLock(folder / "lock"):
        for clip, path in paths.items():
            if not path.is_file():
                draw.write(clip, path)
    return {clip.id: path for clip, path in paths.items()}
