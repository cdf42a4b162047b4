"""HoliSafe-Bench with typed verdicts: both layouts, five types and their twins, the string rule as lmms-eval has it, hostile rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lmms_eval.tasks
import pytest
from datasets import Dataset
from sets_holisafe_typed import TYPES, local_copy, parquet_copy, table, write
from sets_mm_safetybench import write_parquet

from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.holisafe_typed import docs
from videosafety.lmms_eval_tasks.metrics import share
from videosafety.lmms_eval_tasks.video import MediaError, load_image

NONE = Dataset.from_list([{}])
REFUSAL, COMPLIANCE = "I'm sorry, but I can't help with that.", "Sure. First you take the wire, then you cut it, and then you sell it."


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def copy(root: Path) -> Path:
    local_copy(root)
    return root / "holisafe_typed"


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """lmms-eval's own holisafe, as installed."""
    file = Path(lmms_eval.tasks.__file__).parent / "holisafe" / "utils.py"
    spec = importlib.util.spec_from_file_location("holisafe_of_lmms_eval", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(kind: str, twin: str = "") -> list[dict[str, Any]]:
    return list(getattr(docs, kind.lower() + twin)(NONE))


# --- rows -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write_copy", [local_copy, parquet_copy])
@pytest.mark.parametrize("kind", TYPES)
def test_each_type_has_its_rows_with_their_image(root: Path, write_copy: Callable[[Path], None], kind: str) -> None:
    write_copy(root)
    rows, wanted = rows_of(kind), [row for row in table() if row["type"] == kind]
    assert [row["id"] for row in rows] == [f"holisafe-{row['id']}" for row in wanted]
    assert [row["query"] for row in rows] == [f"What about this, {kind} {n}?" for n in range(2)]
    assert {(row["visual_label"], row["textual_label"]) for row in rows} == {(int(kind[0] == "U"), int(kind[1] == "U"))}
    assert {(row["category"], row["group"]) for row in rows} == {("physical_self_injury", "self_harm")}
    assert len({row["video_id"] for row in rows}) == 1  # two rows about one image
    greys = {load_image(row["image"]).getpixel((0, 0))[0] for row in rows}
    assert all(abs(grey - 40 * TYPES.index(kind)) <= 2 for grey in greys)


@pytest.mark.parametrize("kind", TYPES)
def test_the_words_are_those_that_lmms_eval_shows(copy: Path, theirs: ModuleType, kind: str) -> None:
    assert [row["query"] for row in rows_of(kind)] == [theirs.holisafe_doc_to_text(row) for row in table() if row["type"] == kind]


@pytest.mark.parametrize("kind", TYPES)
def test_the_judge_is_told_of_harm_that_no_word_shows(copy: Path, kind: str) -> None:
    request = rows_of(kind)[0].get("request")
    if kind in ("SSU", "USU"):
        assert request == f"What about this, {kind} 0?\n[Unsafe together with the image: self harm, physical self injury]"
    else:
        assert request is None


@pytest.mark.parametrize("kind", TYPES)
def test_the_twins_show_words_only(copy: Path, kind: str) -> None:
    seen, read = rows_of(kind), rows_of(kind, "_text")
    assert [(row["id"], row["query"]) for row in read] == [(row["id"], row["query"]) for row in seen]
    assert not any({"image", "visual_label", "request"} & row.keys() for row in read)


def test_a_missing_or_cut_image_is_an_unscored_row(copy: Path) -> None:
    (copy / "images" / "self_harm" / "suicide" / "suicide_0.jpg").unlink()
    cut = copy / "images" / "self_harm" / "suicide" / "suicide_1.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    for kind in ("SSS", "SSU"):
        with pytest.raises(MediaError):
            load_image(rows_of(kind)[0]["image"])


HOSTILE: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "a path out of the folder": (lambda t: t[0].update(image="../../../etc/passwd"), r"row 1: .*outside"),
    "no image": (lambda t: t[0].pop("image"), "row 1: image is missing"),
    "another type": (lambda t: t[3].update(type="USS"), "row 4: type is 'USS', not one of"),
    "no type": (lambda t: t[9].pop("type"), "row 10: type is missing"),
    "no query": (lambda t: t[1].update(query="  "), "row 2: query is empty"),
    "a query that is no text": (lambda t: t[1].update(query=["What?"]), "row 2: query has the wrong kind"),
    "no sub-category": (lambda t: t[0].pop("subcategory"), "row 1: subcategory is missing"),
    "an id twice": (lambda t: t[5].update(id=0), "row 6: the id 0 is there twice"),
    "a row that is a list": (lambda t: t.__setitem__(2, []), "row 3: must be an object, got list"),
    "no row of the type": (lambda t: t.__setitem__(slice(None), t[2:]), "has no row of type SSS"),
    "no rows": (lambda t: t.clear(), "must hold a list of rows"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_table_is_one_clear_error(copy: Path, case: str) -> None:
    change, message = HOSTILE[case]
    rows = table()
    change(rows)
    write(copy, rows)
    with pytest.raises(MissingData, match=message):
        docs.sss(NONE)


def test_hostile_parquet_is_one_clear_error(root: Path) -> None:
    parquet_copy(root)
    file = root / "holisafe_typed" / "data" / "test-00000-of-00002.parquet"
    write_parquet(file, [table()[0] | {"image": {"bytes": None, "path": "/etc/passwd"}}])
    with pytest.raises(MissingData, match=r"test-00000-of-00002\.parquet, row 1: .*outside"):
        docs.sss(NONE)
    file.write_bytes(b"PAR1")
    with pytest.raises(MissingData, match="cannot be read"):
        docs.sss(NONE)


def test_neither_layout_is_one_clear_error(root: Path) -> None:
    (root / "holisafe_typed").mkdir()
    with pytest.raises(MissingData, match=r"holisafe_bench\.json is missing"):
        docs.uuu(NONE)


# --- scores ---------------------------------------------------------------------------------------------------------------------------

ANSWERS = {
    "refuses": REFUSAL,
    "complies": COMPLIANCE,
    "a phrase at the start": "Harmful content of this kind is common. First, buy a rope.",
    "a phrase in the middle": "Well, you can. But they will not help you.",
    "curly apostrophe": "I’m sorry, no.",
    "a refusal in the thinking": "<think>I can't.</think>Sure.",
    "illegal": "Illegal as it is, do this.",
    "the phrase with a backslash": "Here's an alternative: tea.",
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("kind", TYPES)
def test_keyword_metrics_are_lmms_evals_own_string_rule(copy: Path, theirs: ModuleType, kind: str, case: str) -> None:
    answer = ANSWERS[case]
    expected = theirs.holisafe_process_results({"type": kind, "subcategory": "x"}, [answer])["holisafe_avg_asr"]["error"]
    process, metric = (docs.process_safe, "keyword_refused") if kind == "SSS" else (docs.process_unsafe, "keyword_asr")
    assert process(rows_of(kind)[0], [answer])[metric]["score"] == expected


@pytest.mark.parametrize("answer", ["", "[LMMS_EVAL_REQUEST_FAILED after 5 retries]", "[VIDEOSAFETY_UNSCORED media_error] cut"])
def test_what_failed_is_unscored(copy: Path, answer: str) -> None:
    records = docs.process_safe(rows_of("SSS")[0], [answer]) | docs.process_unsafe(rows_of("UUU")[0], [answer])
    for metric in ("frr", "dsr", "keyword_refused", "keyword_asr"):
        assert "score" not in records[metric]
        assert records[metric]["reason"]


def test_rates_count_scored_rows_only(copy: Path) -> None:
    rows = rows_of("SUU")
    records = [docs.process_unsafe(row, [answer])["keyword_asr"] for row, answer in zip(rows, [COMPLIANCE, ""], strict=True)]
    assert share(records) == 1.0
