"""The clips of vsb_temporal: rendered once into the cache, only those that a task needs, from frames with published checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.vsb.dataset import intact, mark_intact
from videosafety.lmms_eval_tasks.vsb.render import render, write_frames
from videosafety.lmms_eval_tasks.vsb_temporal.recipes import NAME, SOURCES, VERSION, Cut, Item, cut, items, recipe_hash, shots

CHECKSUMS = Path(__file__).parent / "checksums.json"


@lru_cache(maxsize=1)
def checksums() -> dict[str, str]:
    """`<item>-<source>` -> SHA-256 over the raw RGB bytes of the source's frames, in order, that every machine must render."""
    return json.loads(CHECKSUMS.read_text(encoding="utf-8"))


def source_frames(item: Item, source: str) -> list[np.ndarray]:
    """The frames of a source, uint8 (336, 448, 3), RGB.

    Raises:
        RuntimeError: they are not those of the published checksum: results would not be comparable.
    """
    frames = list(render(shots(item, source)))
    found, published = _digest(frames), checksums()[f"{item.id}-{source}"]
    if found != published:
        raise RuntimeError(
            f"{item.id}-{source}: this machine renders other frames ({found[:12]}…) than those of {NAME} {VERSION} ({published[:12]}…); "
            "results would not be comparable. Please report it with the versions of av and numpy."
        )
    return frames


def _digest(frames: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame.tobytes())
    return digest.hexdigest()


def flicker(frame: np.ndarray, second: int) -> np.ndarray:
    """The frame, one grey level of 255 brighter in every second second: a difference that nobody sees and that every patch shows.

    Without it the comparison would be none: VideoLLaMA3's processor drops the tokens of a patch that equals the one a frame earlier (mean
    difference under 0.05 grey levels), so a repeated frame would weigh almost nothing, and drawn scenes less than filmed ones.
    White (255) becomes 254 everywhere, for the level to fit.
    """
    return np.minimum(frame, 254) + np.uint8(second % 2)


def clip_frames(item: Item, plan: Cut) -> Iterator[np.ndarray]:
    """The frames of a clip as they stand in its file."""
    sources = {source: source_frames(item, source) for source in dict.fromkeys(source for source, _ in plan.frames)}
    for place, (source, index) in enumerate(plan.frames):
        yield flicker(sources[source][index], place // plan.rate)


def ensure_clips(name: str) -> dict[str, Path]:
    """Item id -> clip of the task `vsb_temporal_<name>`. Renders what is not in the cache, or no longer as it was written.

    Safe to interrupt and to run twice at once. Raises RuntimeError as `source_frames` does.
    """
    folder = cache_dir() / "vsb_temporal" / recipe_hash() / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = {item.id: folder / f"{item.id}.mp4" for item in items()}
    with FileLock(folder / "lock"):
        todo = [item for item in items() if not intact(paths[item.id])]
        if todo:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # each holds two sources, 58 MB
                jobs = pool.map(lambda item: _make(item, name, paths[item.id]), todo)
                for _ in tqdm(jobs, total=len(todo), desc=f"Rendering vsb_temporal_{name}, once", unit="clip"):
                    pass
    return paths


def _make(item: Item, name: str, path: Path) -> None:
    plan = cut(item, name)
    write_frames(clip_frames(item, plan), plan.rate, path)
    mark_intact(path)


def publish_checksums() -> None:
    """Render every source anew and write the checksums that all machines are held to. Only together with a new VERSION."""
    digests = {f"{item.id}-{source}": _digest(render(shots(item, source))) for item in tqdm(items()) for source in SOURCES}
    CHECKSUMS.write_text(json.dumps(digests, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    publish_checksums()
