"""VLGuard's test set (arXiv 2402.02207): rows of its three sub-sets with or without the image, and its keyword rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import metrics, run
from videosafety.lmms_eval_tasks.data import MissingData, inside, need, read_json
from videosafety.lmms_eval_tasks.judge.keyword import keyword_lists

# sub-set -> (is the image safe, key of the instruction, label of the words where the set tells it). VLGuard's utils.py, load_data.
SUBSETS = {
    "unsafes": (False, "instruction", None),
    "safe_unsafes": (True, "unsafe_instruction", 1),
    "safe_safes": (True, "safe_instruction", 0),
}
# Only harmful images have categories. As in VSB the finer one is `category`, the coarser one `group`.
CATEGORIES = {"category": "harmful_subcategory", "group": "harmful_category"}
SEEN = ("image", "visual_label")  # what a text-only twin lacks


def rows(root: Path, subset: str) -> list[dict[str, Any]]:
    """Rows of one sub-set of `test.json`, with their images in `test/`. Rows of one image share its `video_id`.

    Raises:
        MissingData: no test.json, a row that is not as VLGuard's are, or no row of the sub-set.
    """
    safe, key, words = SUBSETS[subset]
    file = root / "test.json"
    table = read_json(file)
    if not isinstance(table, list):
        raise MissingData(f"videosafety: {file} must hold a list of rows; fetch the data again")
    found = []
    for number, row in enumerate(table, 1):
        where = f"{file}, row {number}"
        if need(row, "safe", bool, where) is not safe:
            continue
        image = need(row, "image", str, where)
        doc = {
            "id": f"{need(row, 'id', (str, int), where)}",
            "language": "en",
            "query": _instruction(need(row, "instr-resp", list, where), key, where),
            "image": inside(root, f"test/{image}", where),
            "video_id": image,
            "visual_label": int(not safe),
        }
        doc |= {} if words is None else {"textual_label": words}
        # Only harmful images have a category. As in VSB the finer one is `category`, the coarser one `group`.
        doc |= {
            ours: row[theirs] for ours, theirs in (("category", "harmful_subcategory"), ("group", "harmful_category")) if row.get(theirs)
        }
        found.append(doc)
    if not found:
        raise MissingData(f"videosafety: {file} has no row whose safe is {str(safe).lower()}; fetch the data again")
    return found


def _instruction(turns: list[Any], key: str, where: str) -> str:
    """The instruction of a row: of its first turn that has the key, and for a harmful image of the first turn only, as VLGuard reads it."""
    turns = turns[:1] if key == "instruction" else [turn for turn in turns if isinstance(turn, dict) and key in turn][:1]
    if not turns:
        raise MissingData(f"videosafety: {where}: instr-resp has no {key}; fetch the data again")
    return str(need(turns[0], key, str, f"{where}: instr-resp"))


def _load(subset: str, image: bool) -> Dataset:
    root = run.data_folder("vlguard")
    found = rows(root, subset)
    shown = [{key: value for key, value in row.items() if image or key not in SEEN} for row in found]
    return run.counted(f"vlguard_{subset}" + ("" if image else "_text"), shown)


def unsafes(_: Dataset) -> Dataset:
    """Harmful images: 442 rows."""
    return _load("unsafes", image=True)


def safe_unsafes(_: Dataset) -> Dataset:
    """Safe images with a harmful instruction: 558 rows."""
    return _load("safe_unsafes", image=True)


def safe_safes(_: Dataset) -> Dataset:
    """The same 558 images with a safe instruction."""
    return _load("safe_safes", image=True)


def unsafes_text(_: Dataset) -> Dataset:
    return _load("unsafes", image=False)


def safe_unsafes_text(_: Dataset) -> Dataset:
    return _load("safe_unsafes", image=False)


def safe_safes_text(_: Dataset) -> Dataset:
    return _load("safe_safes", image=False)


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["image"]]


def process_unsafe(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """DSR by the judge, and `keyword_asr` by VLGuard's rule: 1.0 where no phrase of its list is in the lower-cased answer."""
    # The rule reads the whole answer as it came, thinking and tags included: VLGuard's code sets nothing apart.
    attacked = float(keyword_lists()["vlguard"].match(results[0]) is None)
    return metrics.judged("dsr", doc, results) | metrics.by_rule(doc, results[0], {"keyword_asr": lambda _: attacked})
