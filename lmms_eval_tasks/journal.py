"""A journal of answers: a run that is killed goes on where it stopped, and no request is generated twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def file_identity(path: str | os.PathLike[str]) -> list[Any]:
    """What tells one version of a local file from another without reading it: path, size, time of change."""
    file = Path(path)
    if not file.exists():
        return [str(file), "missing"]
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def media_identity(media: Any) -> Any:
    """Identity of a video or image: of the file, or of the pixels where it is an image in memory."""
    if isinstance(media, Image.Image):
        pixels = media.convert("RGBA") if media.mode in ("P", "PA") else media  # indices mean nothing without their palette
        return [media.mode, media.size, hashlib.sha256(pixels.tobytes()).hexdigest(), media.getexif().get(ExifTags.Base.Orientation)]
    return file_identity(media)


def checkpoint_identity(pretrained: str, commit: str | None) -> list[Any]:
    """What tells one version of a checkpoint from another: the files of a local folder, else the Hub commit that was loaded."""
    folder = Path(pretrained)
    if not folder.is_dir():
        return [pretrained, commit]
    return [file_identity(file) for file in sorted(folder.iterdir()) if file.is_file()]


def hub_commit(pretrained: str, revision: str | None) -> str | None:
    """The commit that a Hub id's revision stands for now, or in the cache where there is no network; None for a local folder.

    Raises:
        OSError: no such repository or revision, or no config in it, an adapter's neither.
    """
    if Path(pretrained).is_dir():
        return None
    from transformers.utils.hub import cached_file, extract_commit_hash  # takes seconds to import: not for whoever reads a journal

    try:
        file = cached_file(pretrained, "config.json", revision=revision)
    except OSError as error:
        try:
            file = cached_file(pretrained, "adapter_config.json", revision=revision)
        except OSError:
            raise error from None
    return extract_commit_hash(file, None)


class Journal:
    """Answers by request key, appended to one file a process and read from all files of the folder.

    Only finished answers are kept: what failed is tried again by the next run.
    """

    def __init__(self, folder: Path, resume: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # answers may be harmful text
        self.answers: dict[str, dict[str, Any]] = {}
        self.file = folder / f"{time.time_ns()}-{os.getpid()}.jsonl"
        if resume:
            for file in sorted(folder.glob("*.jsonl")):
                self._read(file)

    def _read(self, file: Path) -> None:
        with open(file, "rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # the last line of a run that was killed while it wrote, cut anywhere, inside a letter too
                    continue
                self.answers[entry["key"]] = entry

    def write(self, entries: list[dict[str, Any]]) -> None:
        """Append finished answers, each with its `key`; on disk when this returns, so that a kill loses none of them."""
        if not entries:
            return
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        with open(self.file, "a", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        self.answers.update({entry["key"]: entry for entry in entries})


def numbered(keys: list[str]) -> list[str]:
    """Keys made unique: the n-th repetition of the same request (k samples of one prompt) is a request of its own."""
    seen: Counter[str] = Counter()
    unique = []
    for key in keys:
        unique.append(f"{key}#{seen[key]}")
        seen[key] += 1
    return unique
