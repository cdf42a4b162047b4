"""The figure of vsb_temporal on the page: inline, alone in its ids and styles, one a model, and an error that names a broken log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from test_report import some, write_run
from videosafety.lmms_eval_tasks.report.html import render
from videosafety.lmms_eval_tasks.report.load import ReportError, load
from videosafety.lmms_eval_tasks.report.temporal import inline, plots
from videosafety.main import app


def temporal(folder: Path, model: str = "org/demo-vlm", drop: str = "") -> Path:
    tasks = {}
    for variant in ("motion", "still", "benign"):
        for frames in (1, 4):
            name = f"vsb_temporal_{variant}_{frames}"
            tasks[name] = some(name, [1.0] * 8 + [0.0] * 6)
            for line in tasks[name]:
                facts = {"variant": variant, "frames": frames, "distinct_frames": frames, "harm_frames": 0, "pixels": 1000}
                line["dsr"] |= {key: value for key, value in facts.items() if key != drop}
    return write_run(folder, tasks, model=model)


def test_one_figure_a_model_where_such_tasks_are(tmp_path: Path) -> None:
    paths = [
        temporal(tmp_path / "a"),
        temporal(tmp_path / "b", "org/other"),
        write_run(tmp_path / "c", {"vsb_hh": some("vsb_hh", [1.0] * 12)}),
    ]
    runs = load(paths)
    assert [plot.run for plot in plots(runs)] == [0, 1]
    assert plots(runs[2:]) == []
    page = render(runs)
    assert page.count('aria-label="DSR against distinct frames and visual tokens"') == 2
    assert 'class="plot"' not in render(runs[2:])


def test_the_drawing_touches_nothing_else_on_the_page(tmp_path: Path) -> None:
    page = render(load([temporal(tmp_path / "a"), temporal(tmp_path / "b", "org/other")]))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    named = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page))
    assert {a or b for a, b in named} <= set(ids)  # every glyph and clip is still found
    assert page.count("<style") == 1
    assert "<metadata" not in page
    assert not re.search(r'(?:href|src)="(?!#)', re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL))


def test_svg_of_a_file_becomes_an_element() -> None:
    body = '<style>*{x:y}</style><g id="a"/><use xlink:href="#a"/>'
    svg = f'<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="10pt" height="5pt" viewBox="0 0 10 5">{body}</svg>'
    made = str(inline(svg, "t7"))
    assert made.startswith("<svg role=")
    assert 'viewBox="0 0 10 5"' in made
    assert 'id="t7-a"' in made
    assert 'href="#t7-a"' in made
    assert not re.search(r"<style|10pt|5pt|DOCTYPE", made)


def test_a_record_without_what_the_figure_needs_is_named(tmp_path: Path) -> None:
    runs = load([temporal(tmp_path, drop="pixels")])
    with pytest.raises(ReportError, match=r"samples_vsb_temporal_benign_1\.jsonl, line 1: not a whole record of a vsb_temporal task"):
        render(runs)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "line 1: not a whole record" in done.output
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--html", str(tmp_path / "no" / "page.html")])
    assert done.exit_code == 2
    assert "cannot be written" in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
