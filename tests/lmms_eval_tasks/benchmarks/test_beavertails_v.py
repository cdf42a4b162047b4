"""BeaverTails-V: the evaluation split of its 20 categories, both averages, and files that are not BeaverTails-V's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sets_beavertails_v import CATEGORIES, file_of, local_copy, row
from sets_mm_safetybench import png, write_parquet

from videosafety.lmms_eval_tasks.beavertails_v import docs
from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.metrics import category_mean, share
from videosafety.lmms_eval_tasks.video import MediaError, load_image

NONE = Dataset.from_list([{}])
REFUSAL, COMPLIANCE = "I'm sorry, but I can't help with that.", "Sure. First you take the wire, then you cut it, and then you sell it."


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    local_copy(tmp_path)
    return tmp_path


def test_categories_take_turns_each_row_with_its_image(copy: Path) -> None:
    rows = list(docs.load(NONE))
    assert sorted(CATEGORIES) == CATEGORIES == list(docs.CATEGORIES)
    assert len(CATEGORIES) == 20
    assert [row["category"] for row in rows] == [*CATEGORIES, CATEGORIES[0]]
    assert rows[3]["query"] == "How would one go on with this discriminatory_depictions, 0?"
    assert [load_image(row["image"]).getpixel((0, 0))[0] for row in rows[:20]] == [10 * k for k in range(20)]
    assert len({row["id"] for row in rows}) == 21


def test_rows_of_one_image_are_one_cluster(copy: Path) -> None:
    rows = list(docs.load(NONE))
    assert rows[0]["video_id"] == rows[-1]["video_id"]
    assert len({row["video_id"] for row in rows}) == 20


def test_the_text_twin_has_the_same_rows_without_images(copy: Path) -> None:
    seen, read = list(docs.load(NONE)), list(docs.text(NONE))
    assert [(row["id"], row["query"]) for row in read] == [(row["id"], row["query"]) for row in seen]
    assert not any("image" in row for row in read)


def test_all_1180_rows_are_read(copy: Path) -> None:
    for category in CATEGORIES:
        write_parquet(file_of(copy, category), [row(category, n, grey=n) for n in range(59)])
    assert len(docs.load(NONE)) == 20 * 59


def test_a_cut_image_is_an_unscored_row(copy: Path) -> None:
    cut = {"bytes": png(7)[:60], "path": None}
    write_parquet(file_of(copy, CATEGORIES[0]), [row(CATEGORIES[0], 0, grey=0) | {"image": cut}])
    with pytest.raises(MediaError):
        load_image(docs.load(NONE)[0]["image"])


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a path out of the folder": ({"image": {"bytes": None, "path": "../../../etc/passwd"}}, "row 1: .*outside"),
    "no image": ({"image": {"bytes": None, "path": None}}, "row 1: None is no path"),
    "no question": ({"question": None}, "row 1: question has the wrong kind"),
    "an empty question": ({"question": " "}, "row 1: question is empty"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_row_is_one_clear_error(copy: Path, case: str) -> None:
    change, message = HOSTILE[case]
    file = file_of(copy, CATEGORIES[4])
    write_parquet(file, [row(CATEGORIES[4], 0, grey=0) | change])
    with pytest.raises(MissingData, match=message) as caught:
        docs.load(NONE)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(b"PAR1 and no more"), "cannot be read"),
        (lambda file: write_parquet(file, [{"prompt": "Hello"}]), "has no column question, image"),
        (lambda file: write_parquet(file, []), "has no column question, image"),
    ],
    ids=["not there", "no parquet", "other columns", "no rows and no columns"],
)
def test_a_category_that_is_not_whole_is_one_clear_error(copy: Path, change: Callable[[Path], Any], message: str) -> None:
    file = file_of(copy, "false_information")
    change(file)
    with pytest.raises(MissingData, match=message) as caught:
        docs.load(NONE)
    assert str(file) in str(caught.value)


def test_both_averages(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused throughout but for the first category, where one of two rows is not."""
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")
    rows = list(docs.load(NONE))
    records = [docs.process(row, [COMPLIANCE if n == 0 else REFUSAL]) for n, row in enumerate(rows)]
    # `refusal` says refused or not, so what complies is unsafe to it
    assert share([record["dsr"] for record in records]) == pytest.approx(20 / 21)
    assert category_mean([record["scenario_mean"] for record in records]) == pytest.approx((19 + 0.5) / 20)
    assert {entry["metric"] for entry in docs.METRICS} >= records[0].keys()


@pytest.mark.parametrize("answer", ["", "[LMMS_EVAL_REQUEST_FAILED after 5 retries]"])
def test_what_failed_is_no_defence(copy: Path, answer: str) -> None:
    records = docs.process(docs.load(NONE)[0], [answer])
    assert "score" not in records["dsr"]
    assert records["unscored"]["score"] == 1.0
