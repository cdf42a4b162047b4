"""A held-out part of SafeVid-350K, cut by us; it is not SafeVidBench, whose protocol is not known. Runs on a copy laid out by hand."""

from __future__ import annotations

import hashlib
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, read_rows, to_dataset

SEED = "videosafety safevid_350k_heldout 1"  # change it and it is another split, with another version
ONE_IN = 256  # about 1,370 of 350,000 rows, more or fewer as videos have many rows or few
HARMFUL = "harmful"  # the cell of rows whose request is harmful: DSR says nothing of others
SEEN = ("video", "visual_label")  # what the text-only twin lacks


def held_out(unit: str) -> bool:
    """Is this unit in the held-out part? Decided by its name alone: the same on every machine, whatever else is in the set.

    unit: a row's `video_id`, or its `id` where it has no video. All rows of a video fall on one side, so that what is trained on the rest
    has seen no clip of this part.
    """
    digest = hashlib.sha256(f"{SEED}\n{unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % ONE_IN == 0


def unit_of(row: dict[str, Any]) -> str:
    """What `held_out` is asked about."""
    return str(row.get("video_id") or row["id"])


def _load(video: bool) -> Dataset:
    root = run.data_folder("safevid", split={"seed": SEED, "one_in": ONE_IN})
    harmful = [row for row in read_rows(root) if row["cell"] == HARMFUL]
    found = [row for row in harmful if held_out(unit_of(row)) and (not video or "video" in row)]
    if not found:
        raise MissingData(
            f"videosafety: {root / 'rows.jsonl'}: none of its {len(harmful)} rows with cell {HARMFUL!r}{' and a video' if video else ''} "
            f"falls into the held-out part (one in {ONE_IN})"
        )
    return to_dataset([row if video else {key: value for key, value in row.items() if key not in SEEN} for row in found])


def heldout(_: Dataset) -> Dataset:
    """Rows of the held-out part with their videos."""
    return _load(video=True)


def heldout_text(_: Dataset) -> Dataset:
    """The same queries without the video."""
    return _load(video=False)
