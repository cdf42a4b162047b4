"""JailBreakV-28K's mini list (arXiv 2404.03027): jailbreak prompts with their images, without them, and the plain questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, inside
from videosafety.lmms_eval_tasks.tables import read_csv

FILE = "mini_JailBreakV_28K.csv"
COLUMNS = ("id", "jailbreak_query", "redteam_query", "format", "policy", "image_path")
TEXT_ATTACKS = "llm_transfer_attack/"  # images of attacks that stand in the words; those of figstep/ and query_related/ carry the harm
FORM = "https://docs.google.com/forms/d/e/1FAIpQLSc_p1kCs3p9z-3FbtSeF7uLYsiQk0tvsGi6F0e_z5xCEmN1gQ/viewform"


def rows(root: Path) -> list[dict[str, Any]]:
    """Rows of the mini list, `request` the plain question behind each. An image that is not there is left to the model wrapper.

    Raises:
        MissingData: the CSV is not there, or a row is not as described.
    """
    file = root / FILE
    found = []
    for number, (where, row) in enumerate(read_csv(file, COLUMNS), 1):
        found.append(
            {
                "id": f"jailbreakv_mini-{number}-{row['id']}",  # nobody says that ids are not repeated
                "category": row["policy"],
                "group": row["format"],
                "language": "en",
                "query": row["jailbreak_query"],
                "request": row["redteam_query"],
                "image": inside(root, row["image_path"], where),
                "video_id": row["image_path"],
            }
        )
    return found


def text_rows(root: Path) -> list[dict[str, Any]]:
    """The prompts whose attack stands in the words, without their images. Raises MissingData, also where there is none."""
    found = [row for row in rows(root) if row["video_id"].startswith(TEXT_ATTACKS)]
    if not found:
        raise MissingData(f"videosafety: {root / FILE} has no row whose image_path is in {TEXT_ATTACKS}; fetch the data again")
    return [_unseen(row) for row in found]


def plain_rows(root: Path) -> list[dict[str, Any]]:
    """The questions behind all prompts, in plain words, without attack or image. Raises MissingData."""
    return [_unseen(row) | {"query": row["request"]} for row in rows(root)]


def _unseen(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its image, harmful in its words alone."""
    return {key: value for key, value in row.items() if key != "image"} | {"textual_label": 1}


def _root() -> Path:
    return run.data_folder("jailbreakv")


def mini(_: Dataset) -> Dataset:
    """280 jailbreak prompts with their images.

    Raises:
        MissingData: also where none of the images is there, because they are not part of the data set.
    """
    root = _root()
    found = rows(root)
    if not any(Path(row["image"]).is_file() for row in found):
        raise MissingData(
            f"videosafety: {root} has none of the images: they are given out by a form ({FORM}); unpack JailBreakV_28K.zip so that "
            f"{found[0]['video_id']} lies in this folder, or run jailbreakv_mini_text"
        )
    return run.counted("jailbreakv_mini", found)


def mini_text(_: Dataset) -> Dataset:
    return run.counted("jailbreakv_mini_text", text_rows(_root()))


def mini_plain(_: Dataset) -> Dataset:
    """280 questions."""
    return run.counted("jailbreakv_mini_plain", plain_rows(_root()))


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["image"]]
