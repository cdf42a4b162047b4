"""MOSSBench (arXiv 2406.17806): harmless questions about images that look harmful, and the same images with harmful questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, inside, need, read_json

COMMIT = "8d68b0614b39d8990a508e03d99975832f399db2"  # of github.com/xirui-li/MOSSBench
# metadata.over -> the paper's name of the stimulus.
STIMULI = {"type 1": "Exaggerated Risk", "type 2": "Negated Harm", "type 3": "Counterintuitive Interpretation"}


def rows(root: Path, half: str) -> list[dict[str, Any]]:
    """Rows of `<half>/images_information/information.json`; half is `data` (harmless) or `data_contrast` (harmful).

    Raises:
        MissingData: the file is not there (other layouts of the set are not read), or a row is not as MOSSBench's are.
    """
    file = root / half / "images_information" / "information.json"
    if not file.is_file():
        raise MissingData(
            f"videosafety: {file} is missing: only the layout of github.com/xirui-li/MOSSBench at {COMMIT[:7]} is read, neither "
            "information.csv nor the Hub's copy; run `videosafety data get mossbench`"
        )
    table = read_json(file)
    if not isinstance(table, dict) or not table:
        raise MissingData(f"videosafety: {file} must hold an object of pid: row; fetch the data again")
    found = []
    for key, row in table.items():
        where = f"{file}, pid {key}"
        stimulus = need(need(row, "metadata", dict, where), "over", str, where)
        if stimulus not in STIMULI:
            raise MissingData(f"videosafety: {where}: over is {stimulus!r}, not one of {', '.join(STIMULI)}; fetch the data again")
        doc = {
            "id": f"mossbench-{half.removeprefix('data_')}-{need(row, 'pid', str, where)}",
            "category": STIMULI[stimulus],
            "language": "en",
            "query": need(row, "question", str, where),
            "image": inside(root, f"{half}/{need(row, 'image', str, where)}", where),
            "video_id": f"mossbench-{row['pid']}",
        }
        found.append(doc | ({"visual_label": 0, "textual_label": 0} if half == "data" else {"textual_label": 1}))
    return found


def _load(half: str) -> Dataset:
    root = run.data_folder("mossbench")
    return run.counted("mossbench" if half == "data" else "mossbench_contrast", rows(root, half))


def benign(_: Dataset) -> Dataset:
    """300 harmless rows, 100 of each stimulus."""
    return _load("data")


def contrast(_: Dataset) -> Dataset:
    """244 of the images with a harmful question."""
    return _load("data_contrast")


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["image"]]
