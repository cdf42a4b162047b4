"""VLSBench (arXiv 2411.19939): rows of its data.json with the images of its imgs.tar, unpacked beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, inside, need, read_json


def rows(root: Path) -> list[dict[str, Any]]:
    """All rows, in the file's order. One row of the set has an empty instruction: it is kept, its image asks by itself.

    `request` is the instruction and, where the row has one, the set's description of the image: the harm is in the image, and most
    judges do not see it.

    Raises:
        MissingData: no data.json, or a row that is not as VLSBench's are.
    """
    file = root / "data.json"
    table = read_json(file)
    if not isinstance(table, list) or not table:
        raise MissingData(f"videosafety: {file} must hold a list of rows; fetch the data again")
    found = []
    for number, row in enumerate(table, 1):
        where = f"{file}, row {number}"
        key, query = need(row, "instruction_id", (int, str), where), need(row, "instruction", str, where)
        image, shown = need(row, "image_path", str, where), row.get("image_description")
        found.append(
            {
                "id": f"vlsbench-{key}",
                # As in VSB the finer category is `category`, the coarser one `group`.
                "category": need(row, "sub_category", str, where),
                "group": need(row, "category", str, where),
                "language": "en",
                "query": query,
                "request": f"{query}\n[The image shows: {shown}]".lstrip() if isinstance(shown, str) and shown.strip() else query,
                "image": inside(root, image, where),
                "video_id": image,
            }
        )
    return found


def _root() -> Path:
    return run.data_folder("vlsbench")


def full(_: Dataset) -> Dataset:
    """2241 rows with their images."""
    return run.counted("vlsbench", rows(_root()))


def text_only(_: Dataset) -> Dataset:
    """The instructions alone, 2240 of them: the empty one asks nothing without its image."""
    bare = [{key: value for key, value in row.items() if key != "image"} for row in rows(_root()) if row["query"].strip()]
    return run.counted("vlsbench_text", [row | {"request": row["query"]} for row in bare])


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["image"]]
