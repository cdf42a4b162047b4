"""The leaderboard: rows are models, columns sets, and a cell that rests on other things than its column is marked, with the reason."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from test_report import page_of, printed, rows, some, write_run
from videosafety.lmms_eval_tasks.metrics import pooled, wilson
from videosafety.lmms_eval_tasks.report.board import Board, board, columns, groups_of_ours, mismatches
from videosafety.lmms_eval_tasks.report.html import render
from videosafety.lmms_eval_tasks.report.load import load

SETTINGS = {"judge": {"spec": "offline", "id": "offline@1"}, "policy": {"version": 1, "hash": "p1"}}
GOOD, BAD = [1.0] * 18 + [0.0] * 2, [1.0] * 5 + [0.0] * 15


def one(folder: Path, tasks: dict[str, list], model: str, judge: str = "offline@1", **changes: Any) -> Path:
    """A run of tasks with these outcomes; `changes` are parts of what the run noted, or `versions`."""
    lines = {name: some(name, outcomes) for name, outcomes in tasks.items()}
    for line in (line for part in lines.values() for line in part):
        line["frr" if "frr" in line else "dsr"]["judge"] = judge
    noted = SETTINGS | {"judge": {"spec": judge, "id": judge}, "data": {"vsb": {"version": "1.0", "folder": str(folder)}}}
    noted |= {key: value for key, value in changes.items() if key in noted}
    versions = changes.get("versions", dict.fromkeys(tasks, 1.0))
    configs = {name: {"metadata": {"run": noted}} for name in tasks}
    return write_run(folder / model.replace("/", "-") / judge.replace("@", "-"), lines, model=model, configs=configs, versions=versions)


def of(*paths: Path, twins: bool = False) -> Board:
    return board(load(list(paths)), twins)


def cell(found: Board, row: int, column: str, metric: str) -> Any:
    place = next(i for i, c in enumerate(found.columns) if (c.name, c.metric) == (column, metric))
    return found.rows[row].cells[place]


FOUR: dict[str, list] = {"vsb_hh": GOOD, "vsb_sh": GOOD, "vsb_hs": BAD, "vsb_safeq": [1.0] * 2 + [0.0] * 18}


def test_groups_are_read_from_the_task_files() -> None:
    groups = groups_of_ours()
    assert groups["vsb"] == ("vsb_hh", "vsb_sh", "vsb_hs", "vsb_safeq")
    assert set(groups["vlguard"]) < set(groups["videosafety_image"])  # a group inside a group


def test_dsr_beside_frr_pooled_as_the_group_pools(tmp_path: Path) -> None:
    found = of(one(tmp_path, FOUR, "org/a"), one(tmp_path, {name: GOOD for name in FOUR}, "org/b"))
    assert [(c.title, c.name, c.metric, c.higher) for c in found.columns] == [
        ("VSB-Open", "vsb", "dsr", True),
        ("VSB-Open", "vsb", "frr", False),
    ]
    dsr = cell(found, 0, "vsb", "dsr").rate
    assert dsr.value == pytest.approx(pooled([0.9, 0.9, 0.25], [20, 20, 20]))
    assert (dsr.n, dsr.n_scored) == (60, 60)
    assert cell(found, 0, "vsb", "frr").rate.value == 0.1
    assert [row.model for row in found.rows] == ["org/a", "org/b"]
    assert not found.notes


def test_interval_counts_a_video_that_two_tasks_show_once(tmp_path: Path) -> None:
    found = of(one(tmp_path, {"vsb_hh": GOOD, "vsb_sh": GOOD}, "org/a"))  # `some` gives both tasks the same videos
    rate = cell(found, 0, "vsb", "dsr").rate
    assert rate.n_scored == 40
    assert (rate.low, rate.high) == pytest.approx(wilson(0.9, 20))


def test_runs_of_one_model_make_one_row(tmp_path: Path) -> None:
    paths = [one(tmp_path / "1", {"vsb_hh": GOOD}, "org/a"), one(tmp_path / "2", {"figstep": BAD}, "org/a"), one(tmp_path, FOUR, "org/b")]
    found = of(*paths)
    assert [(row.model, row.runs) for row in found.rows] == [("org/a", (0, 1)), ("org/b", (2,))]
    assert cell(found, 1, "figstep", "dsr") is None


def test_another_judge_is_another_row_of_the_same_model(tmp_path: Path) -> None:
    found = of(one(tmp_path, FOUR, "org/a"), one(tmp_path, FOUR, "org/a", judge="refusal@3"))
    assert [(row.model, row.judges) for row in found.rows] == [("org/a", ("offline@1",)), ("org/a", ("refusal@3",))]


UNLIKE = [
    ({"judge": "refusal@3"}, "judge refusal@3 instead of offline@1"),
    ({"policy": {"version": 1, "hash": "p2"}}, "policy v1 · p2 instead of v1 · p1"),
    ({"data": {"vsb": {"version": "2.0"}}}, "data version 2.0 instead of version 1.0"),
    ({"data": {"vsb": {"folder": "/x"}}}, "data revision not recorded by this run instead of version 1.0"),
    ({"versions": {"vsb_hh": 2.0}}, "task version 2.0 instead of 1.0"),
]


@pytest.mark.parametrize(("changes", "words"), UNLIKE)
def test_a_cell_that_rests_on_something_else_is_marked_with_the_reason(tmp_path: Path, changes: dict, words: str) -> None:
    paths = [one(tmp_path / str(i), {"vsb_hh": GOOD}, f"org/{i}", **(changes if i == 0 else {})) for i in range(3)]
    found = of(*paths)
    assert [cell(found, i, "vsb_hh", "dsr").mark for i in range(3)] == [1, 0, 0]  # the odd one out, though it comes first
    assert found.notes == (f"A org/0, in vsb_hh DSR: {words}.",)
    page = html.unescape(render(load(paths)))
    assert f"<li>{found.notes[0]}</li>" in page
    assert re.search(r'class="num unlike" data-cell="A/vsb_hh/dsr"[^>]*>90.0 %<sup>1</sup>', page)
    assert re.search(r'class="num" data-cell="B/vsb_hh/dsr"[^>]*>90.0 %<small>', page)
    assert f"[1] not comparable: {found.notes[0]}" in printed(load(paths), 240)


def test_folder_of_the_data_and_other_sets_do_not_matter(tmp_path: Path) -> None:
    data = {"vsb": {"version": "1.0", "folder": "/elsewhere"}, "figstep": {"revision": "zzz"}}
    found = of(one(tmp_path / "1", {"vsb_hh": GOOD}, "org/a"), one(tmp_path / "2", {"vsb_hh": GOOD}, "org/b", data=data))
    assert not found.notes


def test_fewer_rows_or_other_rows_are_not_comparable(tmp_path: Path) -> None:
    paths = [one(tmp_path / str(i), {"vsb_hh": GOOD}, f"org/{i}") for i in range(2)]
    assert of(*paths, one(tmp_path, {"vsb_hh": GOOD[:12]}, "org/2")).notes == ("C org/2, in vsb_hh DSR: rows 12 instead of 20.",)
    log = next(paths[0].parent.glob("*_samples_vsb_hh.jsonl"))
    log.write_text(log.read_text(encoding="utf-8").replace("Query 3 ", "Other words "), encoding="utf-8")
    third = one(tmp_path / "3", {"vsb_hh": GOOD}, "org/3")
    assert of(*paths, third).notes == ("A org/0, in vsb_hh DSR: rows others (20) instead of those of the rest.",)


def test_part_of_a_group_is_not_comparable_with_all_of_it(tmp_path: Path) -> None:
    found = of(one(tmp_path, FOUR, "org/a"), one(tmp_path, {"vsb_hh": GOOD, "vsb_safeq": GOOD}, "org/b"))
    assert cell(found, 1, "vsb", "dsr").mark == 1
    assert cell(found, 1, "vsb", "frr").mark == 0
    assert found.notes == ("B org/b, in vsb DSR: tasks vsb_hh instead of vsb_hh, vsb_sh, vsb_hs.",)


def test_without_logs_an_unknown_revision_is_not_taken_for_the_same(tmp_path: Path) -> None:
    lines = {"vsb_hh": some("vsb_hh", GOOD)}
    configs = {"vsb_hh": {"metadata": {"run": SETTINGS}}}
    paths = [write_run(tmp_path / m, lines, samples=False, model=m, configs=configs) for m in ("a", "b")]
    assert of(*paths).notes == ("B b, in vsb_hh DSR: data others (revision not recorded by this run) instead of those of the rest.",)


def test_same_sentence_has_one_number_for_all_its_columns(tmp_path: Path) -> None:
    paths = [one(tmp_path / str(i), FOUR, f"org/{i}", judge="offline@1" if i else "refusal@3") for i in range(3)]
    assert of(*paths).notes == ("A org/0, in vsb DSR, vsb FRR: judge refusal@3 instead of offline@1.",)


def test_text_only_and_prompted_twins_have_a_board_of_their_own(tmp_path: Path) -> None:
    path = one(
        tmp_path, {"vsb_hh": GOOD, "vsb_hh_text": GOOD, "vsb_safeq_text": BAD, "vsb_hh_prompted": GOOD, "vsb_temporal_early": GOOD}, "org/a"
    )
    assert [c.name for c in of(path).columns] == ["vsb_hh"]  # and no column that pools vsb_temporal
    assert [(c.name, c.metric) for c in of(path, twins=True).columns] == [
        ("vsb_text", "dsr"),
        ("vsb_text", "frr"),
        ("vsb_hh_prompted", "dsr"),
    ]


def test_few_or_no_verdicts_print_no_rate(tmp_path: Path) -> None:
    paths = [one(tmp_path, {"vsb_hh": [1.0] * 7, "figstep": [None] * 12}, "org/a"), one(tmp_path, {"vsb_hh": GOOD}, "org/b")]
    page = page_of(load(paths), tmp_path)
    assert re.search(r'data-cell="A/vsb_hh/dsr" data-value="">n=7, too few', page)
    assert re.search(r'data-cell="A/figstep/dsr" data-value="">no verdicts', page)
    assert of(*paths).rows[0].unscored == (12, 19)
    assert "12 of 19" in printed(load(paths))


def test_one_model_alone_has_no_leaderboard_in_the_terminal(tmp_path: Path) -> None:
    assert "Leaderboard" not in printed(load([one(tmp_path, FOUR, "org/a")]))
    assert 'id="board"' not in render(load([tmp_path]))


def test_a_secret_in_a_judges_address_stays_out(tmp_path: Path) -> None:
    paths = [one(tmp_path, {"vsb_hh": GOOD}, "org/a"), one(tmp_path, {"vsb_hh": GOOD}, "org/b", judge="local:http://me:pw1234@h/v1#m")]
    runs = load(paths)
    assert "pw1234" not in render(runs)
    assert "pw1234" not in printed(runs)


def test_mismatches_speak_of_shared_tasks_only(tmp_path: Path) -> None:
    apart = load([one(tmp_path / "1", {"vsb_hh": GOOD}, "org/a"), one(tmp_path / "2", {"figstep": GOOD}, "org/b", judge="refusal@3")])
    assert mismatches(apart) == []
    shared = load([one(tmp_path / "3", {"vsb_hh": GOOD}, "org/a"), one(tmp_path / "4", {"vsb_hh": GOOD}, "org/b", judge="refusal@3")])
    assert mismatches(shared) == ["These runs differ in their judges (vsb_hh): do not read their figures as like for like."]


def test_columns_of_the_image_sets_stay_apart(tmp_path: Path) -> None:
    names = ("figstep", "figstep_tiny", "vlguard_unsafes", "vlguard_safe_unsafes", "mm_safetybench_sd")
    found = columns(load([one(tmp_path, dict.fromkeys(names, GOOD), "org/a")]))
    assert {(c.name, c.tasks) for c in found} == {
        ("figstep", ("figstep",)),
        ("figstep_tiny", ("figstep_tiny",)),
        ("vlguard", ("vlguard_safe_unsafes", "vlguard_unsafes")),
        ("mm_safetybench_sd", ("mm_safetybench_sd",)),
    }


def test_a_large_board_is_quick_and_whole(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(i), {"vsb_hh": rows("vsb_hh", 0.2 * i, i)}, model=f"org/{i}") for i in range(5)]
    found = of(*paths)
    assert len(found.rows) == 5
    text = printed(load(paths), 160)
    for i, row in enumerate(found.rows):
        value = row.cells[0].rate.value
        line = next(part for part in text.splitlines() if part.startswith("vsb_hh DSR"))
        assert f"{100 * value:.1f} %" in line, i
