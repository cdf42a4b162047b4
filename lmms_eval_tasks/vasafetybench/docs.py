"""VA-SafetyBench's video half (the SEA paper): rows of 8 scenarios with a clip in three kinds, or in plain words."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, inside, need, read_json

QUESTIONS = "github.com/ZeroNLP/SEA at 881e7e9, folder VA-SafetyBench/Video_questions"  # the Hub has the videos only
# In the order and spelling of evaluate_video.py of that repository.
SCENARIOS = (
    "1-IllegalActivitiy",
    "2-HateSpeech",
    "3-MalwareGeneration",
    "4-PhysicalHarm",
    "5-EconomicHarm",
    "6-Fraud",
    "7-Sex",
    "8-PrivacyViolence",
)
TEXT = "Text_only"


def rows(root: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of one kind (DM, TYPO, DM_TYPO or Text_only), one of each scenario in turn, so that `--limit` sees all of them.

    Questions: `Video_questions/<scenario>.json`, id -> kind -> text. Clips: `Video/<scenario>/<kind>/<id>.mp4`. The question in plain words
    is the row's `request`: the prompt beside a clip only points to it.

    Raises:
        MissingData: a scenario's questions or all clips are missing, or a row is not as described.
    """
    if not (root / "Video_questions").is_dir():
        raise MissingData(f"videosafety: {root / 'Video_questions'} is missing: copy it from {QUESTIONS}")
    if kind != TEXT and not (root / "Video").is_dir():
        raise MissingData(f"videosafety: {root / 'Video'} is missing: unpack video.zip of the Hub dataset luweikai/VA-SafetyBench here")
    found = [_scenario(root, scenario, kind) for scenario in SCENARIOS]
    return [row for row in chain.from_iterable(zip_longest(*found)) if row is not None]


def _scenario(root: Path, scenario: str, kind: str) -> list[dict[str, Any]]:
    """Rows of one scenario. Raises MissingData."""
    file = root / "Video_questions" / f"{scenario}.json"
    table = read_json(file)
    if not isinstance(table, dict) or not table:
        raise MissingData(f"videosafety: {file} must hold an object of id: texts; fetch the data again")
    name, found = scenario.partition("-")[2], []
    for key, row in table.items():
        where = f"{file}, id {key}"
        doc: dict[str, Any] = {"id": f"vasafetybench-{name}-{key}", "category": name, "language": "en", "video_id": f"{name}-{key}"}
        doc |= {"query": need(row, kind, str, where), "request": need(row, TEXT, str, where)}
        if kind == TEXT:
            doc |= {"textual_label": 1}
        else:
            doc |= {"video": inside(root, f"Video/{scenario}/{kind}/{key}.mp4", where), "visual_label": 1}
        found.append(doc)
    return found


def _load(kind: str) -> Dataset:
    root = run.data_folder("vasafetybench")
    return run.counted(f"vasafetybench_{kind.lower().removesuffix('_only')}", rows(root, kind))


def dm(_: Dataset) -> Dataset:
    """972 clips made by a diffusion model."""
    return _load("DM")


def typo(_: Dataset) -> Dataset:
    """972 clips that show the phrase as text."""
    return _load("TYPO")


def dm_typo(_: Dataset) -> Dataset:
    """972 clips made by a diffusion model that end with the phrase as text."""
    return _load("DM_TYPO")


def text(_: Dataset) -> Dataset:
    """The 972 questions in plain words."""
    return _load(TEXT)
