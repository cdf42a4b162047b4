"""JailBreakV-28K's mini list: prompts, their twins without image and without jailbreak, images that come by a form, hostile tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sets_jailbreakv import IMAGES, local_copy, table, write

from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.jailbreakv import docs
from videosafety.lmms_eval_tasks.metrics import process_harmful
from videosafety.lmms_eval_tasks.video import MediaError, load_image

NONE = Dataset.from_list([{}])


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    local_copy(tmp_path)
    return tmp_path / "jailbreakv"


def test_each_prompt_is_joined_with_its_image(copy: Path) -> None:
    rows = list(docs.mini(NONE))
    assert [row["query"] for row in rows] == [row["jailbreak_query"] for row in table()]  # quotes, commas and line ends kept
    assert [row["request"] for row in rows] == [row["redteam_query"] for row in table()]
    assert [row["image"] for row in rows] == [str(copy / image) for _, image in IMAGES]
    assert [(row["group"], row["category"]) for row in rows] == [
        (kind, ("Fraud", "Economic Harm")[n % 2]) for n, (kind, _) in enumerate(IMAGES)
    ]
    assert [abs(load_image(row["image"]).getpixel((0, 0))[0] - 50 * n) <= 2 for n, row in enumerate(rows)] == [True] * 4


def test_the_text_twin_holds_the_attacks_that_stand_in_words(copy: Path) -> None:
    rows, seen = list(docs.mini_text(NONE)), list(docs.mini(NONE))
    assert [(row["id"], row["query"]) for row in rows] == [(row["id"], row["query"]) for row in seen[:2]]
    assert not any("image" in row for row in rows)


def test_the_plain_twin_asks_without_the_jailbreak(copy: Path) -> None:
    rows = list(docs.mini_plain(NONE))
    assert [row["query"] for row in rows] == [row["request"] for row in rows] == [row["redteam_query"] for row in table()]
    assert not any("image" in row for row in rows)


def test_repeated_ids_are_kept_apart(copy: Path) -> None:
    write(copy, [row | {"id": "5"} for row in table()], mark=True)  # with a byte order mark
    assert len({row["id"] for row in docs.mini(NONE)}) == 4


def test_without_any_image_the_form_is_named_and_the_words_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    write(tmp_path / "jailbreakv", table())
    with pytest.raises(
        MissingData, match=r"by a form \(https://docs\.google\.com/forms/.*llm_transfer_attack/SD_related_1216\.png"
    ) as caught:
        docs.mini(NONE)
    assert "\n" not in str(caught.value)
    assert (len(docs.mini_text(NONE)), len(docs.mini_plain(NONE))) == (2, 4)


def test_a_single_missing_or_cut_image_is_an_unscored_row(copy: Path) -> None:
    (copy / IMAGES[0][1]).unlink()
    cut = copy / IMAGES[1][1]
    cut.write_bytes(cut.read_bytes()[:200])
    rows = list(docs.mini(NONE))
    assert len(rows) == 4
    for row in rows[:2]:
        with pytest.raises(MediaError):
            load_image(row["image"])


HOSTILE: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "a path out of the folder": (lambda t: t[1].update(image_path="../../etc/passwd"), "row 2: .*outside"),
    "an absolute path": (lambda t: t[1].update(image_path="/etc/passwd"), "row 2: .*outside"),
    "no image": (lambda t: t[0].update(image_path=""), "row 1: image_path is missing"),
    "no prompt": (lambda t: t[3].update(jailbreak_query=" "), "row 4: jailbreak_query is missing"),
    "no question": (lambda t: t[3].update(redteam_query="", policy=""), "row 4: redteam_query, policy is missing"),
    "no rows": (lambda t: t.clear(), "has no rows"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_table_is_one_clear_error(copy: Path, case: str) -> None:
    change, message = HOSTILE[case]
    rows = table()
    change(rows)
    write(copy, rows)
    with pytest.raises(MissingData, match=message):
        docs.mini(NONE)


def test_no_attack_in_words_is_one_clear_error(copy: Path) -> None:
    write(copy, table()[2:])
    with pytest.raises(MissingData, match="no row whose image_path is in llm_transfer_attack/"):
        docs.mini_text(NONE)


def test_the_judge_reads_the_plain_question(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")
    record = process_harmful(docs.mini(NONE)[0], ["I'm sorry, but I can't help with that."])["dsr"]
    assert (record["score"], record["request"]) == (1.0, "How is deed 0 done?")
