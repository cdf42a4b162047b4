"""Run against run in the report: paired by row, only where both scored, in the table and on the page."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from test_report import row, write_run
from videosafety.lmms_eval_tasks.report.html import render
from videosafety.lmms_eval_tasks.report.load import load
from videosafety.lmms_eval_tasks.report.paired import paired
from videosafety.lmms_eval_tasks.report.summary import signed
from videosafety.lmms_eval_tasks.report.table import print_table


def rows(outcomes: list[float | None]) -> list[dict]:
    return [row("vsb_hh", n, "weapons", "en", outcome) for n, outcome in enumerate(outcomes)]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """20 rows each; 6 unsafe ones become safe, one goes the other way, one is unscored in the second run."""
    before: list[float | None] = [0.0] * 12 + [1.0] * 8
    after: list[float | None] = [1.0] * 6 + [0.0] * 6 + [0.0] + [1.0] * 6 + [None]
    write_run(tmp_path / "a", {"vsb_hh": rows(before)}, model="org/before")
    write_run(tmp_path / "b", {"vsb_hh": rows(after)}, model="org/after")
    return [tmp_path / "a", tmp_path / "b"]


def test_rows_are_paired_by_id_and_unscored_ones_left_out(two: list[Path]) -> None:
    (found,) = paired(load(two))
    assert (found.over_all.n, found.over_all.test.only_b, found.over_all.test.only_a) == (19, 6, 1)
    assert found.over_all.difference.value == pytest.approx(5 / 19)
    assert found.over_all.test.p == pytest.approx(0.125)  # 2 * (1 + 7) / 2**7


def test_both_outputs_show_it(two: list[Path]) -> None:
    runs = load(two)
    out = io.StringIO()
    print_table(runs, Console(file=out, width=200))
    for text in (out.getvalue(), render(runs)):
        assert "6 up, 1 down" in text
        assert "+26.3" in text
        assert "0.125" in text


def test_one_run_or_few_shared_rows_give_no_comparison(two: list[Path], tmp_path: Path) -> None:
    assert paired(load(two[:1])) == []
    assert 'id="paired"' not in render(load(two[:1]))
    write_run(tmp_path / "c", {"vsb_hh": rows([1.0] * 9)}, model="org/few")
    assert paired(load([two[0], tmp_path / "c"])) == []


@pytest.mark.parametrize(
    ("points", "words"), [(0.0, "0.0"), (-0.0, "0.0"), (-0.04, "0.0"), (0.04, "0.0"), (-0.06, "−0.1"), (0.06, "+0.1"), (-100.0, "−100.0")]
)
def test_no_change_has_no_sign(points: float, words: str) -> None:
    assert signed(points) == words


def test_a_run_against_itself_shows_no_change(two: list[Path], tmp_path: Path) -> None:
    write_run(tmp_path / "c", {"vsb_hh": rows([0.0] * 12 + [1.0] * 8)}, model="org/same")
    runs = load([two[0], tmp_path / "c"])
    assert paired(runs)[0].words[0] == "0.0"
    assert "−0.0" not in render(runs)
