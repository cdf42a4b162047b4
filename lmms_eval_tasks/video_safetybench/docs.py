"""Video-SafetyBench (arXiv 2505.11842): rows of its harmful and benign queries, each with one synthesised video, or without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, inside, need, read_json
from videosafety.lmms_eval_tasks.video_safetybench.score import scenarios

# Stands before every question that comes with a video: FlagEvalMM, tasks/video_safety_bench, pre_prompt.
PROMPT = "These are frames of a video.\n"
SEEN = ("video", "visual_label")  # what a text-only twin lacks


def rows(root: Path, split: str) -> list[dict[str, Any]]:
    """Rows of `<split>_data.json`, split "harmful" or "benign", with their videos. Both queries of a video share its `video_id`.

    The harm that a row is about stands in `request` (its harmful_intention): the words of a benign query do not say it.

    Raises:
        MissingData: no such file, or a row that is not as Video-SafetyBench's are.
    """
    file = root / f"{split}_data.json"
    table = read_json(file)
    if not isinstance(table, list) or not table:
        raise MissingData(f"videosafety: {file} must hold a list of rows; fetch the data again")
    found, seen = [], set()
    for number, row in enumerate(table, 1):
        where = f"{file}, row {number}"
        key = str(need(row, "question_id", (str, int), where))
        if key in seen:
            raise MissingData(f"videosafety: {where}: the question_id {key} is there twice; fetch the data again")
        seen.add(key)
        video = need(row, "video_path", str, where)
        found.append(
            {
                "id": f"video_safetybench-{split}-{key}",
                "category": _scenario(video, where),
                "language": "en",
                "query": need(row, "question", str, where),
                "request": need(row, "harmful_intention", str, where),
                "video": inside(root, video, where),
                "video_id": video,
                "visual_label": 1,
                "textual_label": int(split == "harmful"),
            }
        )
    return found


def _scenario(video: str, where: str) -> str:
    """The scenario with its number, such as 1_Violent_Crimes: the folder below video/. Raises MissingData: it is none of the 13."""
    parts = video.split("/")
    name = parts[1] if len(parts) > 2 else ""
    if name.partition("_")[2] not in scenarios():
        raise MissingData(f"videosafety: {where}: video_path {video!r} names none of the 13 scenarios; fetch the data again")
    return name


def _load(split: str, video: bool) -> Dataset:
    root = run.data_folder("video_safetybench")
    found = rows(root, split)
    if video:
        return run.counted(f"video_safetybench_{split}", [row | {"query": PROMPT + row["query"]} for row in found])
    bare = [{key: value for key, value in row.items() if key not in SEEN} for row in found]
    return run.counted(f"video_safetybench_{split}_text", bare)


def harmful(_: Dataset) -> Dataset:
    """1132 queries that say what they want."""
    return _load("harmful", video=True)


def benign(_: Dataset) -> Dataset:
    """1132 queries in harmless words about the same videos, which bring the harm."""
    return _load("benign", video=True)


def harmful_text(_: Dataset) -> Dataset:
    return _load("harmful", video=False)


def benign_text(_: Dataset) -> Dataset:
    return _load("benign", video=False)
