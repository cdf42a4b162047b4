"""MM-SafetyBench (arXiv 2311.17600): rows of its 13 scenarios from the Hub mirror's Parquet files, or from its own repository's layout."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData, image_of, inside, need, read_json, read_parquet

TINY_FILE = "TinyVersion_ID_List.json"
TINY_COMMIT = "b80eedea3db312c09ded2082813390f68e750ef3"  # of github.com/isXinLiu/MM-SafetyBench, where the file lies in the root
# The official order and spelling; the mirror's names are these without the number.
SCENARIOS = (
    "01-Illegal_Activitiy",
    "02-HateSpeech",
    "03-Malware_Generation",
    "04-Physical_Harm",
    "05-EconomicHarm",
    "06-Fraud",
    "07-Sex",
    "08-Political_Lobbying",
    "09-Privacy_Violence",
    "10-Legal_Opinion",
    "11-Financial_Advice",
    "12-Health_Consultation",
    "13-Gov_Decision",
)
# split -> key of the official JSON whose text goes with that image: the repository's README, section Evaluation.
PROMPTS = {"SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question", "SD_TYPO": "Rephrased Question", "Text_only": "Changed Question"}


def rows(root: Path, split: str, tiny: bool = False) -> list[dict[str, Any]]:
    """Rows of one split (SD, TYPO, SD_TYPO or Text_only), one of each scenario in turn, so that `--limit` sees all kinds.

    Layouts, the first that is there: `data/<scenario>/<split>.parquet` with id, question, image (the Hub mirror); or
    `data/processed_questions/<NN-scenario>.json` with `data/imgs/` or `imgs/` `<NN-scenario>/<split>/<id>.jpg` (the repository).

    Raises:
        MissingData: neither is there, a scenario is missing, a row is not as described, or `tiny` and the list of its ids is missing.
    """
    read = _official if (root / "data" / "processed_questions").is_dir() else _mirror
    wanted = _tiny_ids(root) if tiny else {}
    found = []
    for scenario in SCENARIOS:
        one = read(root, scenario, split, wanted.get(scenario))
        if lost := wanted.get(scenario, set()) - one.keys():
            raise MissingData(f"videosafety: {root}: {scenario} has no id {min(lost)}, which {TINY_FILE} names; fetch both again")
        found.append(one.values())
    return [row for row in chain.from_iterable(zip_longest(*found)) if row is not None]


def _doc(scenario: str, key: str, query: str, asked: str, image: str | None) -> dict[str, Any]:
    """The doc of one row. `asked` is the question in plain words: with an image the prompt does not say what is asked for."""
    name = scenario[3:]
    doc = {"id": f"mm_safetybench-{name}-{key}", "category": name, "language": "en", "query": query, "request": asked}
    doc |= {"video_id": f"{name}-{key}"}
    return doc | ({"textual_label": 1} if image is None else {"image": image, "visual_label": 1})


def _mirror(root: Path, scenario: str, split: str, wanted: set[str] | None) -> dict[str, dict[str, Any]]:
    """id -> doc of one scenario, of the ids `wanted` or of all. Raises MissingData."""
    folder = root / "data" / scenario[3:]
    asked = {key: row["question"] for key, _, row in _table(folder / "Text_only.parquet", ["id", "question"], wanted)}
    if split == "Text_only":
        return {key: _doc(scenario, key, question, question, None) for key, question in asked.items()}
    found = {}
    for key, where, row in _table(folder / f"{split}.parquet", ["id", "question", "image"], wanted):
        if key not in asked:
            raise MissingData(f"videosafety: {where}: id {key} is not in Text_only.parquet beside it; fetch the data again")
        found[key] = _doc(scenario, key, row["question"], asked[key], image_of(row["image"], "mm_safetybench", root, where))
    return found


def _table(file: Path, columns: list[str], wanted: set[str] | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, which row, the row) of a Parquet file of the mirror, of the ids `wanted` or of all. Raises MissingData."""
    seen = set()
    for number, row in enumerate(read_parquet(file, columns), 1):
        where = f"{file}, row {number}"
        key = str(need(row, "id", (str, int), where))
        need(row, "question", str, where)
        if key in seen:
            raise MissingData(f"videosafety: {where}: the id {key} is there twice; fetch the data again")
        seen.add(key)
        if wanted is None or key in wanted:
            yield key, where, row


def _official(root: Path, scenario: str, split: str, wanted: set[str] | None) -> dict[str, dict[str, Any]]:
    """As `_mirror`."""
    file = root / "data" / "processed_questions" / f"{scenario}.json"
    table = read_json(file)
    if not isinstance(table, dict):
        raise MissingData(f"videosafety: {file} must hold an object of id: row; fetch the data again")
    images = "data/imgs" if (root / "data" / "imgs").is_dir() else "imgs"
    found = {}
    for key, row in table.items():
        where = f"{file}, id {key}"
        asked = need(row, PROMPTS["Text_only"], str, where)
        image = None if split == "Text_only" else inside(root, f"{images}/{scenario}/{split}/{key}.jpg", where)
        if wanted is None or key in wanted:
            found[key] = _doc(scenario, key, need(row, PROMPTS[split], str, where), asked, image)
    return found


def _tiny_ids(root: Path) -> dict[str, set[str]]:
    """Scenario -> ids of the tiny list: [{"Scenario": "01-…", "Sampled_ID_List": [ids]}, …]. Raises MissingData."""
    file = root / TINY_FILE
    if not file.is_file():
        raise MissingData(
            f"videosafety: {file} is missing: the mirror lacks it; save https://raw.githubusercontent.com/isXinLiu/MM-SafetyBench/"
            f"{TINY_COMMIT}/{TINY_FILE} under this name"
        )
    table = read_json(file)
    if not isinstance(table, list):
        raise MissingData(f"videosafety: {file} must hold a list; fetch it again")
    found: dict[str, set[str]] = {}
    for number, entry in enumerate(table, 1):
        where = f"{file}, entry {number}"
        ids = need(entry, "Sampled_ID_List", list, where)
        found[need(entry, "Scenario", str, where)] = {str(key) for key in ids}
    if lost := [scenario for scenario in SCENARIOS if scenario not in found]:
        raise MissingData(f"videosafety: {file} has no ids of {', '.join(lost)}; fetch it again")
    return found


def _load(split: str, tiny: bool = False) -> Dataset:
    root = run.data_folder("mm_safetybench")
    task = f"mm_safetybench_{'tiny_' if tiny else ''}{split.lower().removesuffix('_only')}"
    return run.counted(task, rows(root, split, tiny))


def sd(_: Dataset) -> Dataset:
    """1680 images made by Stable Diffusion."""
    return _load("SD")


def typo(_: Dataset) -> Dataset:
    """1680 key phrases drawn as images."""
    return _load("TYPO")


def sd_typo(_: Dataset) -> Dataset:
    """1680 images made by Stable Diffusion with the key phrase below."""
    return _load("SD_TYPO")


def text(_: Dataset) -> Dataset:
    """The 1680 questions in plain words."""
    return _load("Text_only")


def tiny_sd(_: Dataset) -> Dataset:
    return _load("SD", tiny=True)


def tiny_typo(_: Dataset) -> Dataset:
    return _load("TYPO", tiny=True)


def tiny_sd_typo(_: Dataset) -> Dataset:
    return _load("SD_TYPO", tiny=True)


def tiny_text(_: Dataset) -> Dataset:
    return _load("Text_only", tiny=True)


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["image"]]
