"""Arrays on disk within a limit of bytes: the part of the frame cache that outlives a run."""

from __future__ import annotations

import logging
import os
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

STALE_SECONDS = 3600.0  # a part file this old was left by a run that was killed


class FrameStore:
    """Named sets of arrays in a folder, which other processes may share. `max_bytes`: what the folder may hold."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._guard = threading.Lock()
        self._unpruned = 0
        self._full = False
        prune(folder, max_bytes)

    def read(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays written under `key`; None where there are none, or they are damaged."""
        try:
            with np.load(self._file(key), allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None  # not there, or cut off while it was written, or damaged: made again and replaced

    def write(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays. Where the disk takes no more, warn once and keep nothing from then on: a run does not end for it."""
        if self._full:
            return
        file = self._file(key)
        part = file.with_name(f"{file.stem}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(part, arrays)
            size = part.stat().st_size
            os.replace(part, file)
        except OSError as error:
            part.unlink(missing_ok=True)
            with self._guard:
                first, self._full = not self._full, True
            if first:
                logging.getLogger(__name__).warning(
                    "%s: frames cannot be kept here (%s); going on without: free some space, or set VIDEOSAFETY_CACHE_DIR",
                    self.folder,
                    error.strerror or error,
                )
            return
        with self._guard:
            self._unpruned += size
            due = self._unpruned > self.max_bytes // 20  # listing a large folder at each write would be slow
            if due:
                self._unpruned = 0
        if due:
            prune(self.folder, self.max_bytes)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    # What np.savez_compressed does, at the fastest level: twice as fast, a quarter larger.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                np.lib.format.write_array(out, array, allow_pickle=False)


def prune(folder: Path, max_bytes: int) -> None:
    """Remove what was written longest ago until the folder holds at most `max_bytes`, and the parts that killed runs left."""
    files = []
    for file in folder.glob("*/*"):
        try:
            stat = file.stat()
        except FileNotFoundError:  # another process renamed or removed it meanwhile
            continue
        if file.suffix in (".npz", ".part"):
            files.append((stat.st_mtime, stat.st_size, file))
    total, stale = 0, time.time() - STALE_SECONDS
    for changed, size, file in sorted(files, reverse=True):
        total += size
        if changed < stale if file.suffix == ".part" else total > max_bytes:
            file.unlink(missing_ok=True)
