"""BeaverTails-V (arXiv 2503.17682): harmful questions about images, the evaluation split of its 20 categories."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import metrics, run
from videosafety.lmms_eval_tasks.data import MissingData, image_of, need, read_parquet

CATEGORIES = (
    *("animal_abuse", "dangerous_behavior", "deception_in_personal_relationships", "discriminatory_depictions", "environmental_damage"),
    *("false_information", "financial_and_academic_fraud", "hacking_or_digital_crime", "harmful_health_content", "horror_and_gore"),
    *("identity_misuse_and_impersonation", "insulting_and_harassing_behavior", "pornographic_content"),
    *("privacy_invasion_and_surveillance", "psychological_harm_and_manipulation", "psychological_horror_and_dark_themes"),
    *("sensitive_information_in_key_areas", "sexual_crimes", "terrorism_or_extremism", "violence_and_physical_harm"),
)


def rows(root: Path, image: bool) -> list[dict[str, Any]]:
    """Rows of `data/<category>/evaluation.parquet`, one of each category in turn, so that `--limit` sees all.

    Rows with the same image share its `video_id`.

    Raises:
        MissingData: a category is not there or empty, or a row is not as described.
    """
    found = [_of(root, category, image) for category in CATEGORIES]
    return [row for row in chain.from_iterable(zip_longest(*found)) if row is not None]


def _of(root: Path, category: str, image: bool) -> list[dict[str, Any]]:
    file = root / "data" / category / "evaluation.parquet"
    found = []
    for number, row in enumerate(read_parquet(file, ["question", "image"] if image else ["question"]), 1):
        where = f"{file}, row {number}"
        question = need(row, "question", str, where)
        if not question.strip():
            raise MissingData(f"videosafety: {where}: question is empty; fetch the data again")
        doc = {"id": f"beavertails_v-{category}-{number}", "category": category, "language": "en", "query": question}
        doc["video_id"] = doc["id"]
        if image:
            path = image_of(row["image"], "beavertails_v", root, where)
            doc |= {"image": path, "video_id": Path(path).name}
        found.append(doc)
    if not found:
        raise MissingData(f"videosafety: {file} has no rows; fetch the data again")
    return found


def _load(image: bool) -> Dataset:
    root = run.data_folder("beavertails_v")
    return run.counted("beavertails_v" if image else "beavertails_v_text", rows(root, image))


def load(_: Dataset) -> Dataset:
    """1180 questions about images."""
    return _load(image=True)


def text(_: Dataset) -> Dataset:
    """The same questions without their images."""
    return _load(image=False)


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["image"]]


def process(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """`dsr` with its companions, and `scenario_mean`, its unweighted mean over the categories, from one verdict."""
    return metrics.judged("dsr", doc, results, also=("scenario_mean",))


METRICS = [*metrics.DSR_METRICS, metrics.listed("scenario_mean", metrics.category_mean, True)]
