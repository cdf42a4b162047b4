"""VSB-Open: rows from the item files that ship with the package, and the clips they name, rendered once into the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from tqdm import tqdm

from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.judge.policy import category_groups
from videosafety.lmms_eval_tasks.vsb.render import harm_spans, write_clip

NAME, VERSION = "VSB-Open", "1.0"
ITEMS = Path(__file__).parent / "items"
CHECKSUMS = Path(__file__).parent / "assets" / "checksums.json"

# cell -> (which clip it shows, visual label, textual label); 0 safe, 1 harmful. HS is harmless in words only.
CELLS = {"hh": ("harmful", 1, 1), "hs": ("harmful", 1, 0), "sh": ("safe", 0, 1), "safeq": ("safe", 0, 0)}
LANGUAGES = ("en", "zh", "es", "ar", "hi", "fr", "pt", "ru", "ja", "de")


@lru_cache(maxsize=1)
def items() -> dict[str, list[dict[str, Any]]]:
    """Category -> its items as written, in the policy's order of categories."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
    return {c: yaml.load((ITEMS / f"{c}.yml").read_text(encoding="utf-8"), loader)["items"] for c in category_groups()}  # noqa: S506


@lru_cache(maxsize=1)
def data_hash() -> str:
    """First 16 hex digits of the SHA-256 over all item files, line ends normalised: goes into every result."""
    digest = hashlib.sha256()
    for category in category_groups():
        digest.update((ITEMS / f"{category}.yml").read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def clips() -> dict[str, list[dict[str, Any]]]:
    """Video id -> its shots. Each item has one harmful and one safe clip; two cells, in every language, share each."""
    return {f"{c}-{item['n']}-{kind}": item[kind]["shots"] for c, rows in items().items() for item in rows for kind in ("harmful", "safe")}


def rows(cell: str) -> list[dict[str, Any]]:
    """The rows of one cell, English first, categories interleaved so that any `--limit` sees all kinds.

    Each: id, cell, category, group, language, query, video_id (also the recipe's id), visual_label, textual_label, harm_spans in seconds.
    """
    kind, visual, textual = CELLS[cell]
    found = []
    for category, group in category_groups().items():
        for item in items()[category]:
            video_id = f"{category}-{item['n']}-{kind}"
            queries = {"en": item[cell], **{language: t[cell] for language, t in item.get("translations", {}).items()}}
            for language, query in queries.items():
                row: dict[str, Any] = {"id": f"vsb-{category}-{item['n']}-{cell}-{language}", "cell": cell}
                row |= {"category": category, "group": group, "language": language, "query": query}
                row |= {"video_id": video_id, "visual_label": visual, "textual_label": textual}
                row["harm_spans"] = [list(span) for span in harm_spans(item[kind]["shots"])]
                found.append((LANGUAGES.index(language), item["n"], row))
    return [row for *_, row in sorted(found, key=lambda entry: entry[:2])]


@lru_cache(maxsize=1)
def checksums() -> dict[str, str]:
    """Video id -> SHA-256 over the raw RGB frames that every machine must render."""
    return json.loads(CHECKSUMS.read_text(encoding="utf-8"))


def video_folder() -> Path:
    return cache_dir() / "vsb" / data_hash()


def ensure_videos(ids: Iterable[str]) -> dict[str, Path]:
    """Video id -> file. Renders what is not in the cache, or no longer as it was written; safe to interrupt and to run twice at once.

    Raises:
        RuntimeError: a rendered clip has other frames than the published checksum: results would not be comparable.
    """
    folder = video_folder()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {video_id: folder / f"{video_id}.mp4" for video_id in dict.fromkeys(ids)}
    with FileLock(folder / "lock"):
        todo = [video_id for video_id, path in paths.items() if not intact(path)]
        if todo:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = pool.map(_render, todo, [paths[video_id] for video_id in todo])
                for _ in tqdm(jobs, total=len(todo), desc=f"Rendering {NAME} {VERSION}, once", unit="clip"):
                    pass
    return paths


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def intact(path: Path) -> bool:
    """Whether a clip is there as it was when `mark_intact` saw it."""
    return path.is_file() and _sidecar(path).is_file() and _sidecar(path).read_text() == _file_digest(path)


def mark_intact(path: Path) -> None:
    """Write the digest beside a finished clip, last of all: a clip without it is rendered again."""
    part = path.with_suffix(".sha256.part")
    part.write_text(_file_digest(path))
    os.replace(part, _sidecar(path))


def _render(video_id: str, path: Path) -> None:
    frames = write_clip(clips()[video_id], path)
    if frames != checksums()[video_id]:
        raise RuntimeError(
            f"{video_id}: this machine renders other frames ({frames[:12]}…) than those of {NAME} {VERSION} "
            f"({checksums()[video_id][:12]}…); results would not be comparable. Please report it with the versions of av and numpy."
        )
    mark_intact(path)


def publish_checksums() -> None:
    """Render every clip anew and write the checksums that all machines are held to. Only together with a new VERSION."""
    folder = cache_dir() / "vsb-publish"
    folder.mkdir(parents=True, exist_ok=True)
    digests = {video_id: write_clip(shots, folder / "clip.mp4") for video_id, shots in tqdm(clips().items())}
    CHECKSUMS.write_text(json.dumps(digests, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    publish_checksums()
