"""Sections of the report on folders that lmms-eval wrote: every figure with its n, groups, and what others published, marked as theirs."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sets_mmsafeaware
import sets_mossbench
import sets_xstest
from real_run import NO, YES, evaluate, often

from test_report import page_of, printed, shown, some, write_run
from videosafety.lmms_eval_tasks.catalog import catalog
from videosafety.lmms_eval_tasks.metrics import wilson
from videosafety.lmms_eval_tasks.report.html import render
from videosafety.lmms_eval_tasks.report.load import Run, load
from videosafety.lmms_eval_tasks.report.sets import OTHER, across, sections, set_of

TASKS = ("mmsafeaware", "mossbench_both", "xstest")


def write_data(root: Path) -> None:
    """Larger copies than those of the contract tests, or nothing would have ten rows."""
    sets_mmsafeaware.write_prompts(root / "mmsafeaware", tuple(range(100, 2310, 40)))
    for number in range(100, 2310, 40):
        sets_mossbench.write_image(root / "mmsafeaware" / ("images" if number < 2000 else "images2") / f"{number}.png", grey=number % 200)
    for half, numbers in (("data", range(1, 301, 10)), ("data_contrast", range(1, 301, 20))):
        rows = [sets_mossbench.row(n, 1 + (n > 100) + (n > 200), f"Question {n}?") for n in numbers]
        sets_mossbench.write(root / "mossbench" / half, rows)
    kinds = (("homonyms", "safe"), ("contrast_homonyms", "unsafe"))
    table = [(str(2 * n + k), f"Prompt {n} of {kind}?", kind, label, "", "") for n in range(12) for k, (kind, label) in enumerate(kinds)]
    rows = [dict(zip(sets_xstest.COLUMNS, row, strict=True)) for row in table]
    sets_xstest.write_csv(root / "xstest" / "xstest_prompts.csv", sets_xstest.COLUMNS, rows)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One run of three sets, which answers two rows in three."""
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEOSAFETY_DATA_DIR", str(root))
        patch.setenv("VIDEOSAFETY_JUDGE", "refusal")
        yield evaluate(tmp_path_factory.mktemp("out"), TASKS, often(0.34, f"Yes. {YES}", f"No. {NO}"))


@pytest.fixture(scope="module")
def run(real: Path) -> Run:
    return load([real])[0]


def records(real: Path, task: str, metric: str) -> list[dict]:
    (log,) = real.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line)[metric] for line in log.read_text(encoding="utf-8").splitlines()]


# --- figures ----------------------------------------------------------------------------------------------------------------------


def test_every_metric_that_the_task_lists_is_there_and_is_what_lmms_eval_printed(real: Path, run: Run) -> None:
    for name, task in run.tasks.items():
        listed = [entry["metric"] for entry in run.raw["configs"][name]["metric_list"]]
        companions = {"unscored", "n_scored", "ci95_low", "ci95_high", "bound_low", "bound_high", "panel_agreement"}
        assert [task.metric, *(figure.name for figure in task.also)] == [m for m in listed if m not in companions]
        for figure in task.also:
            assert figure.rate.value == (None if (v := run.raw["results"][name][f"{figure.name},none"]) is None else pytest.approx(v))
    assert not run.remarks


def test_a_task_scored_by_rule_is_a_task_with_its_own_main_metric(run: Run) -> None:
    task = run.tasks["mmsafeaware"]
    assert (task.metric, task.higher, task.rate.n, run.other) == ("yesno_pooled", True, 56, {})


def test_a_figure_of_one_category_counts_its_rows_alone(real: Path, run: Run) -> None:
    found = {figure.name: figure for figure in run.tasks["mossbench"].also}
    scores = [r["score"] for r in records(real, "mossbench", "frr") if r["category"] == "Exaggerated Risk"]
    figure = found["exaggerated_risk"]
    assert (figure.rate.n_scored, figure.of) == (10, "rows of Exaggerated Risk")
    assert (figure.rate.low, figure.rate.high) == pytest.approx(wilson(sum(scores) / 10, 10))
    over = {figure.name: figure.rate for figure in run.tasks["mmsafeaware"].also}
    assert over["yesno_typical"].n + over["yesno_attack"].n + over["yesno_oversafe"].n == 56


def test_a_grade_that_nobody_gave_is_no_verdict_and_says_why(run: Run, tmp_path: Path) -> None:
    page, table = page_of([run], tmp_path), printed([run], 200)
    assert shown(page, "A", "mossbench/graded_refused") == "no verdicts"
    assert "needs_llm_judge" in page
    assert "Without a verdict, and not shown: graded_refused (needs_llm_judge)" in table


def test_page_and_table_show_the_same_figures(run: Run, tmp_path: Path) -> None:
    page, table = page_of([run], tmp_path), printed([run], 200)
    for name, task in run.tasks.items():
        for figure in task.also:
            value = shown(page, "A", f"{name}/{figure.name}")
            line = next((text for text in table.splitlines() if text.split()[:2] == [name, figure.name]), None)
            assert (line is None) == (figure.rate.n_scored == 0)
            assert line is None or value in line
    assert shown(page, "A", "mossbench/exaggerated_risk").endswith("%")  # ten rows are enough
    assert shown(page, "A", "mmsafeaware/yesno_typical") == "n=4, too few"


def test_groups_show_n_and_interval(run: Run, tmp_path: Path) -> None:
    page = page_of([run], tmp_path)
    groups = {group.name: {figure.name: figure for figure in group.figures} for group in run.groups}
    assert set(groups) == {"mossbench_both", "xstest"}
    for name, figures in groups.items():
        for metric, figure in figures.items():
            assert figure.rate.value == pytest.approx(run.raw["results"][name][f"{metric},none"])
            assert shown(page, "A", f"{name}/{metric}").endswith("%")
            assert figure.rate.low < figure.rate.value < figure.rate.high
    assert (groups["mossbench_both"]["frr"].rate.n, groups["mossbench_both"]["dsr"].rate.n) == (30, 15)


@pytest.mark.parametrize(
    ("stated", "interval"),
    [(19 / 30, True), (0.7, True), (0.123, False)],  # weighted by rows, a plain mean, neither
)
def test_a_group_is_pooled_as_its_stated_figure_says(tmp_path: Path, stated: float, interval: bool) -> None:
    tasks = {"vsb_hh": some("vsb_hh", [1.0] * 10 + [0.0] * 10), "vsb_sh": some("vsb_sh", [1.0] * 9 + [0.0])}
    path = write_run(tmp_path, tasks)
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["results"]["vsb"] = {"dsr,none": stated, "alias": "vsb"}
    path.write_text(json.dumps(raw), encoding="utf-8")
    (group,) = load([path])[0].groups
    (figure,) = group.figures
    assert figure.rate.value == pytest.approx(stated)
    assert (figure.rate.n, figure.rate.n_scored, figure.rate.low is not None) == (30, 30, interval)


def test_a_group_without_a_figure_has_none_here(tmp_path: Path) -> None:
    path = write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12), "vsb_sh": some("vsb_sh", [None] * 12)})
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["results"]["vsb"] = {"dsr,none": None, "alias": "vsb"}
    path.write_text(json.dumps(raw), encoding="utf-8")
    run = load([path])[0]
    assert run.groups[0].figures[0].rate.value is None
    assert shown(page_of([run], tmp_path), "A", "vsb/dsr") == "no figure"


def test_a_groups_auroc_is_a_number_over_the_rows_that_it_orders(tmp_path: Path) -> None:
    tasks = {"vsb_hh": some("vsb_hh", [1.0] * 12), "vsb_sh": some("vsb_sh", [1.0] * 12)}
    path = write_run(tmp_path, tasks)
    for label, name in enumerate(tasks):
        (log,) = path.parent.glob(f"*_samples_{name}.jsonl")
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        for place, line in enumerate(lines):  # one row a task has no probability
            line["alarm_auroc_visual"] = {"video_id": None, "task": name, "p": 0.5 if place else None, "label": label}
        log.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    raw = json.loads(path.read_text(encoding="utf-8"))
    for name in tasks:
        raw["results"][name]["alarm_auroc_visual,none"] = None
    between = {"n": 22, "low": 0.8041, "high": 0.9712}
    raw["results"]["vsb"] = {"alarm_auroc_visual,none": 0.9125, "alarm_interval_visual,none": between, "alias": "vsb"}
    path.write_text(json.dumps(raw), encoding="utf-8")
    run = load([path])[0]
    (figure,) = run.groups[0].figures
    assert (figure.rate.value, figure.rate.n, figure.rate.n_scored, figure.is_share) == (0.9125, 24, 22, False)
    assert (figure.rate.low, figure.rate.high) == (0.8041, 0.9712)
    assert "0.804 – 0.971" in page_of([run], tmp_path)
    assert shown(page_of([run], tmp_path), "A", "vsb/alarm_auroc_visual") == "0.912"


# --- sections and references -------------------------------------------------------------------------------------------------------


def test_a_section_a_set_with_its_title_and_paper(run: Run) -> None:
    found = sections([run])
    assert [part.name for part in found] == ["mmsafeaware", "mossbench", "xstest"]
    text = html.unescape(render([run]))
    for part in found:
        assert part.facts is catalog()[part.name]
        assert part.facts.title in text
        assert part.facts.paper in text
    assert not across([run])


def test_published_figures_stand_beside_ours_and_are_marked_as_theirs(run: Run) -> None:
    page = html.unescape(render([run]))
    for name in ("mmsafeaware", "mossbench", "xstest"):
        block = page[page.index(f'id="set-{name}"') :]
        table = block[block.index('<table class="beside">') : block.index("</table>", block.index('<table class="beside">'))]
        rows = re.findall(r'<tr class="(ours|theirs)">(.*?)</tr>', table, re.DOTALL)
        for entry in catalog()[name].reference:
            row = next(
                body for whose, body in rows if whose == "theirs" and f"<td>{entry.model}</td>" in body and f"<td>{entry.task}</td>" in body
            )
            assert f"{entry.metric} <b>{entry.value:g}</b>" in table
            assert "theirs</span>" in row
        for task in (t for t in run.tasks if set_of(t) == name and any(e.task == t for e in catalog()[name].reference)):
            at = [whose for whose, body in rows if f"<td>{task}</td>" in body]
            assert at[0] == "ours"
            assert set(at[1:]) == {"theirs"}
    assert "never like for like" in page


def test_references_of_tasks_that_were_not_run_have_no_figure_of_ours(tmp_path: Path) -> None:
    (part,) = sections(load([write_run(tmp_path, {"figstep_tiny": some("figstep_tiny", [1.0] * 12)})]))
    assert {beside.task for beside in part.beside} == {"figstep", "figstep_text"}
    assert not any(beside.ours for beside in part.beside)


def test_tasks_of_no_set_come_last_under_their_own_heading(tmp_path: Path) -> None:
    tasks = {"mine_cell": some("mine_cell", [1.0] * 12), "vsb_hh": some("vsb_hh", [1.0] * 12)}
    found = sections(load([write_run(tmp_path, tasks)]))
    assert [part.name for part in found] == ["vsb", OTHER]
    assert found[1].facts is None
    assert "Tasks of no set in the catalogue" in render(load([tmp_path]))


def test_a_further_figure_of_the_log_that_is_not_in_the_results_is_remarked(real: Path, tmp_path: Path) -> None:
    (results,) = real.rglob("*_results.json")
    raw = json.loads(results.read_text(encoding="utf-8"))
    raw["results"]["xstest_safe"]["keyword_refused,none"] = 0.999
    copy = tmp_path / results.name
    copy.write_text(json.dumps(raw), encoding="utf-8")
    for log in results.parent.glob("*_samples_*"):
        (tmp_path / log.name).write_bytes(log.read_bytes())
    (run,) = load([copy])
    assert any("for keyword_refused, results.json 0.9990; shown is the sample log" in remark for remark in run.remarks)


def test_a_task_name_from_a_file_stays_text(tmp_path: Path) -> None:
    lines = some("vsb_hh", [1.0] * 12)
    for line in lines:
        line["<b>x</b>"] = {"score": 1.0, "reason": "<i>r</i>"}
    path = write_run(tmp_path, {"vsb_hh": lines})
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["results"]["vsb_hh"]["<b>x</b>,none"] = 1.0
    path.write_text(json.dumps(raw), encoding="utf-8")
    page = render(load([path]))
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
