"""The finished set on disk: for each split rows.jsonl, its clips and a Parquet file. Each file is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videosafety.dataset_builder.lists import dump_line
from videosafety.dataset_builder.provenance import KEYS, arrow
from videosafety.dataset_builder.rows import Row

COLUMNS: dict[str, Any] = {
    "id": "string",
    "cell": "string",
    "query": "string",
    "video": "string",
    "video_id": "string",
    "category": "string",
    "group": "string",
    "language": "string",
    "visual_label": "int64",
    "textual_label": "int64",
    "harm_spans": [["double"]],
    "duration": "double",
    "split": "string",
    "description": "string",
    "provenance": KEYS,
}
FOLDERS = {"test": "vsb", "train": "train", "validation": "validation"}  # split -> folder; `vsb` is what the tasks vsb_* look for
_AT_ONCE = 500


def folder_of(out: Path, split: str) -> Path:
    return out / FOLDERS[split]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file beside `file` that takes its place when all went well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_rows(rows: Iterable[Row], out: Path, split: str) -> int:
    """Write a split: `rows.jsonl` and `videos/` in its folder, and `parquet/<split>.parquet`; clips that no row names are removed.

    Every row has `file`, the clip to be linked or copied. Returns how many rows there were; files of an empty split are removed.
    """
    import pyarrow
    import pyarrow.parquet

    folder, table = folder_of(out, split), out / "parquet" / f"{split}.parquet"
    schema = pyarrow.schema([(name, arrow(kind)) for name, kind in COLUMNS.items()])
    named: set[str] = set()
    count = 0
    with replacing(folder / "rows.jsonl") as text, replacing(table) as packed:  # noqa: SIM117
        with open(text, "w", encoding="utf-8", newline="\n") as lines, pyarrow.parquet.ParquetWriter(packed, schema) as writer:
            batch: list[Row] = []
            for row in rows:
                shown: dict[str, Any] = {key: row.get(key) for key in COLUMNS}
                if row["video_id"] not in named:
                    named.add(row["video_id"])
                    place(Path(row["file"]), folder / shown["video"])
                told = shown | {
                    "provenance": json.dumps(shown["provenance"], ensure_ascii=False)
                }  # text: what reads rows.jsonl knows no objects
                lines.write(dump_line({key: value for key, value in told.items() if value is not None}))
                batch.append(shown)
                count += 1
                if len(batch) == _AT_ONCE:
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                    batch.clear()
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))
    for clip in folder.glob("videos/*.mp4"):
        if clip.stem not in named:
            clip.unlink()
    if not count:
        (folder / "rows.jsonl").unlink()
        table.unlink()
    return count


def place(clip: Path, target: Path) -> None:
    """The clip under its name in the set: the same bytes as a link where the disk can do that, else a copy."""
    if target.is_file() and target.stat().st_size == clip.stat().st_size:
        return
    with replacing(target) as part:
        try:
            os.link(clip, part)
        except OSError:  # another disk, or one without links
            shutil.copyfile(clip, part)
