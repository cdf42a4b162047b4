"""A safety set read from the Hub, as `videosafety publish dataset` lays it out: the rows and clips of one cell, at a pinned commit."""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from videosafety.lmms_eval_tasks.data import MissingData, cache_dir, check_row, need, read_parquet
from videosafety.lmms_eval_tasks.vsb import dataset as vsb
from videosafety.lmms_eval_tasks.vsb.render import frames_digest

VARIABLE = "VIDEOSAFETY_VSB"
SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")  # never .webm, which lmms-eval takes for sound
ROWS_AT_ONCE = 4  # each with its clip


def hub_rows(named: str, cell: str, video: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one cell of the set ORG/NAME@COMMIT, and what a results file records of it. Clips are written to the cache once.

    Rows that are those of VSB-Open are recorded as VSB-Open, so that results with the embedded set and with this one compare; then every
    clip must have the frames that are published for it.

    Raises:
        MissingData: no commit, no such set or cell, no access, or a row or clip that is not as it must be.
    """
    repo, commit = _pinned(named)
    where = f"{VARIABLE}={named}"
    found, clips = [], {}
    for file in _files(repo, commit, cell, where):
        columns = _columns(file)
        if video and "video" not in columns:
            raise MissingData(f"videosafety: {where}: the split {cell} has no videos")
        wanted = [name for name in columns if video or name != "video"]
        for stored in read_parquet(file, wanted, ROWS_AT_ONCE if video else 64):
            row = {key: value for key, value in stored.items() if value is not None and key != "video"}
            check_row(row, f"videosafety: {where}, row {row.get('id')}")
            if video and stored["video"] is None:
                continue
            found.append(row)
            if video:
                clips[row["id"]] = clip_of(stored["video"], f"{where}, row {row['id']}")
    if not found:
        raise MissingData(f"videosafety: {where} has no row with cell {cell!r}" + (" and a video" if video else ""))
    if cell in vsb.CELLS and found == vsb.rows(cell):
        facts = {"name": vsb.NAME, "version": vsb.VERSION, "hash": vsb.data_hash(), "hub": f"{repo}@{commit}"}
        _check_frames({Path(clips[row["id"]]): row["video_id"] for row in found if video}, where)
    else:
        facts = {"name": repo, "hub": f"{repo}@{commit}", "revision": commit}
    if video:
        found = [row | {"video": clips[row["id"]], "video_id": row.get("video_id", Path(clips[row["id"]]).stem)} for row in found]
    return found, facts


def _pinned(named: str) -> tuple[str, str]:
    repo, _, commit = named.partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise MissingData(
            f"videosafety: {VARIABLE}={named}: pin the data set, as ORG/NAME@<the 40 digits of a commit>; its page lists them under "
            "Files. A set in a folder goes into VIDEOSAFETY_DATA_DIR/vsb."
        )
    return repo, commit


def _files(repo: str, commit: str, cell: str, where: str) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    pattern = f"data/{cell}-*.parquet"
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=[pattern]))
    except (HTTPError, HFValidationError, OSError) as error:
        says = str(error).splitlines()[0]
        raise MissingData(
            f"videosafety: could not fetch {where} from the Hub: {says}; is access granted, and `hf auth login` done?"
        ) from error
    files = sorted(folder.glob(pattern))
    wanted = int(files[0].stem.rsplit("-", 1)[1]) if files else 0
    if not files or len(files) != wanted:
        raise MissingData(f"videosafety: {where} has {len(files)} of {wanted or 'the'} files {pattern}; was it made by `publish dataset`?")
    return files


def _columns(file: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(file).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise MissingData(f"videosafety: {file} cannot be read ({error!s:.200}); delete it, and it is fetched again") from error


def clip_of(value: Any, where: str) -> str:
    """The path of a clip whose bytes a Parquet file holds, written to the cache once under its hash. Raises MissingData without bytes."""
    body = need(value, "bytes", bytes, where)
    suffix = PurePosixPath(str(value.get("path"))).suffix.lower()
    name = hashlib.sha256(body).hexdigest()[:32] + (suffix if suffix in SUFFIXES else ".mp4")
    file = cache_dir() / "clips" / name
    if not file.is_file() or file.stat().st_size != len(body):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{name}.{os.getpid()}")
        part.write_bytes(body)
        part.replace(file)
    return str(file)


def _check_frames(clips: dict[Path, str], where: str) -> None:
    """Raises MissingData unless each clip has the frames of VSB-Open's of that id; a clip is looked at once."""
    new = [clip for clip in clips if not vsb.intact(clip)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for clip, frames in tqdm(zip(new, pool.map(frames_digest, new), strict=True), "Checking clips, once", len(new), disable=not new):
            if frames != vsb.checksums()[clips[clip]]:
                raise MissingData(
                    f"videosafety: {where}: the clip {clips[clip]} has other frames than that of {vsb.NAME} {vsb.VERSION}, though the rows "
                    f"are the same; results would not be comparable: take another commit, or leave {VARIABLE} out for the set that ships"
                )
            vsb.mark_intact(clip)
