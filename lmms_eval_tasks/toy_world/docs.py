"""What the toy_* YAMLs call: the rows of a cell with their clips."""

from __future__ import annotations

from collections.abc import Callable

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import to_dataset
from videosafety.lmms_eval_tasks.toy_world.dataset import NAME, data_hash, ensure_clips, rows
from videosafety.lmms_eval_tasks.toy_world.world import CELLS, UTILITY, VERSION, Clip


def _process_docs(cell: str) -> Callable[[Dataset], Dataset]:
    def process_docs(_: Dataset) -> Dataset:
        run.start()
        run.note("data", {"toy_world": {"name": NAME, "version": VERSION, "hash": data_hash()}})
        found = rows(cell)
        paths = ensure_clips(Clip.of(row["video_id"]) for row in found)
        return to_dataset([row | {"video": str(paths[row["video_id"]])} for row in found])

    return process_docs


hh, sh, hs, safeq, utility = (_process_docs(cell) for cell in (*CELLS, UTILITY))
