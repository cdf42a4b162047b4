"""Tests of training_recipes/mixture.py: exact counts, nothing twice, the same for the same seed on every machine, and clear shortfalls."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.training_recipes import mixture
from videosafety.training_recipes.data import DataError, load
from videosafety.training_recipes.mixture import AT_SFT, mix
from videosafety.training_recipes.schema import Row, new_row


def rows(name: str, count: int) -> list[Row]:
    return [new_row(id=f"{name}-{n}", source=name, prompt=f"{name} {n}?", completion="Yes.", label_version="1") for n in range(count)]


SIZES = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted), min_size=1)


@given(SIZES, st.integers(), st.randoms())
def test_a_mixture_is_a_part_of_its_sources_with_exact_counts(sizes: dict[str, list[int]], seed: int, generator: random.Random) -> None:
    sources = {name: rows(name, size) for name, (_, size) in sizes.items()}
    counts = {name: count for name, (count, _) in sizes.items()}
    found = mix(sources, counts, seed)
    assert Counter(row["source"] for row in found) == Counter({name: count for name, count in counts.items() if count})
    assert len({row["id"] for row in found}) == len(found)  # without replacement
    known = {row["id"]: row for rows in sources.values() for row in rows}
    assert all(row == known[row["id"]] for row in found)
    shuffled = {name: generator.sample(rows, len(rows)) for name, rows in reversed(sources.items())}
    assert mix(shuffled, counts, seed) == found  # neither the order of the rows nor that of the sources counts


def test_the_same_on_every_machine() -> None:
    """The order itself is pinned: it may change only with a note in the change log."""
    found = mix({"a": rows("a", 5), "b": rows("b", 5)}, {"a": 3, "b": 2}, 42)
    assert [row["id"] for row in found] == ["b-1", "b-2", "a-2", "a-0", "a-4"]


def test_seeds_draw_and_order_differently() -> None:
    sources = {"a": rows("a", 100)}
    one, two = (mix(sources, {"a": 50}, seed) for seed in (1, 2))
    assert {row["id"] for row in one} != {row["id"] for row in two}
    whole = [mix(sources, {"a": 100}, seed) for seed in (1, 2)]
    assert whole[0] != whole[1]
    assert whole[0] != sources["a"]


def test_what_is_drawn_of_one_source_does_not_hang_on_another() -> None:
    def of_a(size: int) -> list[str]:
        found = mix({"a": rows("a", 20), "b": rows("b", size)}, {"a": 7, "b": 3}, 1)
        return [row["id"] for row in found if row["source"] == "a"]

    assert of_a(3) == of_a(30)


def test_every_row_is_drawn_about_as_often() -> None:
    times = Counter(row["id"] for seed in range(400) for row in mix({"a": rows("a", 10)}, {"a": 5}, seed))
    assert len(times) == 10
    assert all(150 < count < 250 for count in times.values())  # 200 each; 5 standard deviations


def test_sources_are_mixed_and_not_laid_end_to_end() -> None:
    found = mix({"a": rows("a", 300), "b": rows("b", 300)}, {"a": 300, "b": 300}, 0)
    assert 100 < sum(row["source"] == "a" for row in found[:300]) < 200


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 4, "b": 2}, ["1 problem(s)", "a: has 3 rows, 4 are wanted, 1 too few"]),
        ({"a": 4, "b": 9}, ["2 problem(s)", "a: has 3 rows", "b: has 3 rows, 9 are wanted, 6 too few"]),
        ({"a": 1}, ["b: is in sources or in counts, but not in both"]),
        ({"a": 1, "b": 1, "c": 0}, ["c: is in sources or in counts, but not in both"]),
    ],
)
def test_a_shortfall_names_the_source(counts: dict[str, int], said: list[str]) -> None:
    with pytest.raises(DataError) as error:
        mix({"a": rows("a", 3), "b": rows("b", 3)}, counts)
    assert all(part in str(error.value) for part in said)


def test_ids_that_are_there_twice_and_negative_counts() -> None:
    with pytest.raises(DataError, match="a: 1 ids are there twice"):
        mix({"a": [*rows("a", 3), rows("a", 1)[0]]}, {"a": 2})
    with pytest.raises(ValueError, match="must not be negative"):
        mix({"a": rows("a", 3)}, {"a": -1})


def test_the_papers_mixture_has_ten_thousand_rows() -> None:
    sizes = {"vst": 6000, "vcg-plus": 2500, "llava": 3000}
    found = mix({name: rows(name, size) for name, size in sizes.items()}, AT_SFT)
    assert Counter(row["source"] for row in found) == {"vst": 6000, "vcg-plus": 2000, "llava": 2000}


def talk(n: int, **values: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": "A cat."}]
    return {"video": [f"{n}.mp4"], "conversations": turns} | values


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The arguments of the command for three small sources, whose clips are there."""
    for n in range(30):
        (tmp_path / f"{n}.mp4").write_bytes(b"x")
    (tmp_path / "vst.jsonl").write_text(
        "\n".join(json.dumps(talk(n, safety_labels={"visual": n % 2, "textual": 0})) for n in range(10)),
    )
    (tmp_path / "vcg.json").write_text(json.dumps([talk(n) for n in range(10, 20)]))
    (tmp_path / "llava.json").write_text(json.dumps([talk(n) for n in range(20, 30)]))
    named = [part for name in ("vst.jsonl", "vcg.json", "llava.json") for part in (f"--{Path(name).stem}", str(tmp_path / name))]
    return [*named, "--label-version", "1", "--root", str(tmp_path), "--out", str(tmp_path / "mixed.jsonl"), "--counts", "6", "2", "2"]


def test_the_command(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture.main([*files, "--general-safe"])
    assert "10 rows, seed 42" in capsys.readouterr().out
    found = load([tmp_path / "mixed.jsonl"], "at_sft", tmp_path)
    assert Counter(row["source"] for row in found) == {"vst": 6, "vcg-plus": 2, "llava": 2}
    assert {(row["visual_label"], row["textual_label"]) for row in found if row["source"] != "vst"} == {(0, 0)}
    first = (tmp_path / "mixed.jsonl").read_bytes()
    mixture.main([*files, "--general-safe"])
    assert (tmp_path / "mixed.jsonl").read_bytes() == first


def test_general_rows_stay_unlabelled_unless_told(files: list[str], tmp_path: Path) -> None:
    """Defect #23: the official mixture calls 4,000 general rows safe without a word."""
    mixture.main(files)
    load([tmp_path / "mixed.jsonl"], "sft", tmp_path)
    with pytest.raises(DataError, match="8 problem") as error:  # two labels of four rows
        load([tmp_path / "mixed.jsonl"], "at_sft", tmp_path)
    assert "visual_label is missing; at_sft needs it" in str(error.value)


def test_labelled_general_rows_need_their_polarity(files: list[str], tmp_path: Path) -> None:
    """1 is safe in old files and harmful in new ones."""
    (tmp_path / "vcg.json").write_text(json.dumps([talk(n, safety_labels={"visual": 1, "textual": 1}) for n in range(10, 20)]))
    with pytest.raises(SystemExit, match=r"vcg.json, row 1: holds labels.*--general-label-version"):
        mixture.main(files)
    for version, label in (("0", 0), ("1", 1)):
        mixture.main([*files, "--general-label-version", version])
        found = load([tmp_path / "mixed.jsonl"], "sft", tmp_path)
        assert {row["visual_label"] for row in found if row["source"] == "vcg-plus"} == {label}


def test_the_command_ends_with_the_reason(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="llava: has 10 rows, 11 are wanted"):
        mixture.main([*files[:-3], "6", "2", "11"])
    (tmp_path / "25.mp4").unlink()
    with pytest.raises(SystemExit, match=r"1 of 30 videos and images are missing[^\n]*\n  25.mp4"):
        mixture.main([*files[:-3], "10", "10", "10"])
    assert not (tmp_path / "mixed.jsonl").exists()
