"""What the vsb_* YAMLs call: the rows of a cell with or without video, the prompt, and what the model is shown."""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import hub_set, run
from videosafety.lmms_eval_tasks.data import MissingData, local_copy, read_rows, to_dataset
from videosafety.lmms_eval_tasks.vsb import dataset as vsb


def cell_rows(cell: str, video: bool) -> Dataset:
    """Rows of one cell: of VSB-Open, or of the set in VIDEOSAFETY_DATA_DIR/vsb, or of the one on the Hub that VIDEOSAFETY_VSB names."""
    run.start()
    folder = local_copy("vsb")
    if named := os.environ.get(hub_set.VARIABLE):
        found, facts = hub_set.hub_rows(named, cell, video)
        run.note("data", {"vsb": facts})
    elif folder is None:
        found = vsb.rows(cell)
        run.note("data", {"vsb": {"name": vsb.NAME, "version": vsb.VERSION, "hash": vsb.data_hash()}})
        paths = vsb.ensure_videos(row["video_id"] for row in found) if video else {}
        found = [row | {"video": str(paths[row["video_id"]])} for row in found] if video else found
    else:
        found = rows_of_folder("vsb", folder, cell, video)
    return to_dataset(found)


def rows_of_folder(name: str, folder: Any, cell: str, video: bool) -> list[dict[str, Any]]:
    """Rows of one cell of a local set; with `video`, those that name one. One clear error where there are none."""
    found = [row for row in read_rows(folder) if row["cell"] == cell and (not video or "video" in row)]
    if not found:
        raise MissingData(f"videosafety: {folder / 'rows.jsonl'} has no row with cell {cell!r}" + (" and a video" if video else ""))
    run.note("data", {name: {"name": f"local copy of {name}", "folder": str(folder)}})
    return found


def hh(_: Dataset) -> Dataset:
    return cell_rows("hh", video=True)


def sh(_: Dataset) -> Dataset:
    return cell_rows("sh", video=True)


def hs(_: Dataset) -> Dataset:
    return cell_rows("hs", video=True)


def safeq(_: Dataset) -> Dataset:
    return cell_rows("safeq", video=True)


def hh_text(_: Dataset) -> Dataset:
    return cell_rows("hh", video=False)


def sh_text(_: Dataset) -> Dataset:
    return cell_rows("sh", video=False)


def safeq_text(_: Dataset) -> Dataset:
    return cell_rows("safeq", video=False)


def visual(doc: dict[str, Any]) -> list[str]:
    """The clip, as a path: every lmms-eval model takes that."""
    return [doc["video"]]


def no_visual(doc: dict[str, Any]) -> list[str]:
    """Nothing to see: the text-only twin."""
    return []


def text(doc: dict[str, Any]) -> str:
    """The query as it stands: nothing is added to it."""
    return doc["query"]


def target(doc: dict[str, Any]) -> str:
    """There is no reference answer."""
    return ""
