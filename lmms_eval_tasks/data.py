"""Where things lie: the cache folder, local copies of datasets, and the one clear error for data that is not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

MAX_JSON = 512 * 2**20  # bytes of one JSON or CSV file that is read whole: the largest of our sets has 1.5 MB
MAX_IMAGE = 64 * 2**20  # bytes of one image inside a Parquet file
IMAGE_KINDS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp"}  # first bytes -> suffix


class MissingData(SystemExit):
    """Ends the run with one line that says what is missing and how to get it.

    lmms-eval retries everything that happens while a task loads five times and then reports a `RetryError` without the cause, with
    exit status 0. SystemExit is the one exception that passes: the line is printed as it is, and the exit status is 1.
    """


def cache_dir() -> Path:
    """VIDEOSAFETY_CACHE_DIR, else ~/.cache/videosafety. Rendered videos, sampled frames and journals live here."""
    return Path(os.environ.get("VIDEOSAFETY_CACHE_DIR") or Path.home() / ".cache" / "videosafety").expanduser()


def local_copy(name: str) -> Path | None:
    """The folder VIDEOSAFETY_DATA_DIR/<name>, if the variable is set and the folder is there."""
    root = os.environ.get("VIDEOSAFETY_DATA_DIR")
    folder = Path(root).expanduser() / name if root else None
    return folder if folder is not None and folder.is_dir() else None


def find(name: str) -> Path:
    """The folder of the dataset `name`: VIDEOSAFETY_DATA_DIR/<name>, else what was fetched before, else it is fetched now.

    Raises:
        MissingData: it is gated, unreleased, or there is no network; one line says what to do.
    """
    folder = local_copy(name)
    if folder is not None:
        return folder
    from videosafety.lmms_eval_tasks.fetch import fetched

    return fetched(name)


def inside(root: Path, relative: Any, where: str) -> str:
    """The absolute path of a file that a row names, as text. It need not be there: its row comes out unscored.

    Raises:
        MissingData: not a relative path below `root`; `where` says which row.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise MissingData(f"videosafety: {where}: {relative!r} is no path; fetch the data again")
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise MissingData(f"videosafety: {where}: {relative!r} lies outside {root}; fetch the data again, from its source")
    return str(path)


def need(row: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`row[key]`, of the kind it must have. Raises MissingData, naming the row (`where`) and the key, where it is not."""
    if not isinstance(row, dict):
        raise MissingData(f"videosafety: {where}: must be an object, got {type(row).__name__}; fetch the data again")
    value = row.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        said = "is missing" if key not in row else f"has the wrong kind: {value!r:.80}"
        raise MissingData(f"videosafety: {where}: {key} {said}; fetch the data again")
    return value


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises MissingData: not there, too large, not UTF-8, not JSON."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise MissingData(f"videosafety: {file} is larger than {MAX_JSON >> 20} MiB; that is not this dataset")
        return json.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise MissingData(f"videosafety: {file} is missing; `videosafety data status` shows what the folder must hold") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MissingData(f"videosafety: {file} is not JSON ({error}); fetch the data again") from error


def read_parquet(file: Path, columns: list[str], rows_at_once: int = 64) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, a batch at a time; an image is {"bytes": …, "path": …} as the Hub stores it.

    Raises:
        MissingData: not there, not Parquet, or without one of the columns.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if lost := [name for name in columns if name not in table.schema_arrow.names]:
                raise MissingData(f"videosafety: {file} has no column {', '.join(lost)}; fetch the data again")
            for batch in table.iter_batches(batch_size=rows_at_once, columns=columns):
                yield from batch.to_pylist()
    except FileNotFoundError as error:
        raise MissingData(f"videosafety: {file} is missing; `videosafety data status` shows what the folder must hold") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise MissingData(f"videosafety: {file} cannot be read ({error!s:.200}); fetch the data again") from error


def image_of(value: Any, name: str, root: Path, where: str) -> str:
    """The path of a row's image: of a file below `root` that it names, or of its bytes, written to the cache once.

    Args:
        value: a relative path, or the Hub's {"bytes": bytes | None, "path": str | None}. Bytes win, and `path` is then not looked at.
        name: the dataset, whose folder of the cache takes the bytes.

    Raises:
        MissingData: neither, or too large.
    """
    if not isinstance(value, dict):
        return inside(root, value, where)
    data = value.get("bytes")
    if data is None:
        return inside(root, value.get("path"), where)
    if not isinstance(data, bytes) or len(data) > MAX_IMAGE:
        raise MissingData(f"videosafety: {where}: an image must be bytes, at most {MAX_IMAGE >> 20} MiB")
    suffix = next((kind for start, kind in IMAGE_KINDS.items() if data.startswith(start)), ".webp")
    file = cache_dir() / "images" / name / (hashlib.sha256(data).hexdigest()[:32] + suffix)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_bytes(data)
        part.replace(file)
    return str(file)


ROW_KEYS = {"id": str, "cell": str, "query": str}
OPTIONAL_KEYS = {
    "video": str,
    "video_id": str,
    "category": str,
    "language": str,
    "visual_label": int,
    "textual_label": int,
    "harm_spans": list,
}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a local set: `rows.jsonl` in the folder, one JSON object a line; `video` is a path inside the folder.

    Required: id (unique), cell, query. Optional: video, video_id, category, language, visual_label and textual_label (0 safe,
    1 harmful), harm_spans ([[start, end], …] in seconds). A video that is not there is kept: its rows come out unscored.

    Raises:
        MissingData: no rows.jsonl, or a row that is not as described; the message names file, line and mend.
    """
    file = folder / "rows.jsonl"
    if not file.is_file():
        raise MissingData(f"videosafety: {file} is missing: a local set is a folder with rows.jsonl and the videos it names")
    rows, seen = [], set()
    lines = file.read_bytes().split(b"\n")  # not splitlines: JSON strings may hold the other line separators
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        where = f"videosafety: {file}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise MissingData(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except json.JSONDecodeError as error:
            raise MissingData(f"{where}: not JSON ({error.msg}); each line must hold one whole object") from error
        check_row(row, where)
        if row["id"] in seen:
            raise MissingData(f"{where}: the id {row['id']} is there twice")
        seen.add(row["id"])
        if "video" in row:
            path = (folder / row["video"]).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise MissingData(f"{where}: video {row['video']!r} lies outside the folder")
            row |= {"video": str(path), "video_id": row.get("video_id", row["video"])}
        rows.append(row)
    return rows


def check_row(row: Any, where: str) -> None:
    """Raises MissingData, saying what is wrong, where a row is not as `read_rows` describes."""
    if not isinstance(row, dict):
        raise MissingData(f"{where}: must be a JSON object")
    for key, kind in {**ROW_KEYS, **OPTIONAL_KEYS}.items():
        if key in ROW_KEYS and key not in row:
            raise MissingData(f"{where}: {key} is missing; every row needs {', '.join(ROW_KEYS)}")
        if key in row and (not isinstance(row[key], kind) or isinstance(row[key], bool)):
            raise MissingData(f"{where}: {key} must be a {kind.__name__}, got {row[key]!r}")
    if any(row.get(label, 0) not in (0, 1) for label in ("visual_label", "textual_label")):
        raise MissingData(f"{where}: labels are 0 (safe) or 1 (harmful)")
    if "\0" in row.get("video", ""):
        raise MissingData(f"{where}: video {row['video']!r} is no path")
    for span in row.get("harm_spans", []):
        numbers = isinstance(span, list) and len(span) == 2 and all(type(t) in (int, float) for t in span)
        if not numbers or not 0 <= span[0] < span[1]:
            raise MissingData(f"{where}: harm_spans must be [[start, end], …] in seconds with start before end, got {span!r}")


def to_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Rows as a dataset with the columns of all rows; a key that a row lacks is None there."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return Dataset.from_list([{key: row.get(key) for key in columns} for row in rows])
