"""The committed pages are the generated ones, and every link in them leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import ROOT
from videosafety.lmms_eval_tasks import docs_pages
from videosafety.lmms_eval_tasks.catalog import catalog

DOCS = ROOT / "docs"


def test_the_committed_pages_are_the_generated_ones() -> None:
    there = {
        path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8")
        for path in [DOCS / "benchmarks.md", *DOCS.glob("benchmarks/*.md")]
    }
    made = docs_pages.pages()
    assert sorted(there) == sorted(made), "run `make docs`"
    assert [name for name in made if there[name] != made[name]] == [], "run `make docs`"


@pytest.mark.parametrize("name", docs_pages.pages())
def test_every_relative_link_leads_somewhere(name: str) -> None:
    text = docs_pages.pages()[name]
    targets = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)]
    assert [target for target in targets if not ((DOCS / name).parent / target).resolve().exists()] == []


def test_the_table_has_a_row_a_set_and_each_row_every_cell() -> None:
    text = docs_pages.overview()
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == len(catalog())
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {11}
    assert all(f"(benchmarks/{name}.md)" in text for name in catalog())


@pytest.mark.parametrize("name", list(catalog()))
def test_a_page_has_data_tasks_figures_and_readme(name: str) -> None:
    found = catalog()[name]
    text = docs_pages.page(found)
    for part in ("## Get the data", "## Tasks", "## Figures of others", "## README of the folder"):
        assert part in text
    assert all(f"| `{task.name}` |" in text for task in found.tasks)
    assert text.count("\n# ") == 1  # its title, and no other at this level
    if found.source.kind in ("hub", "github"):
        assert f"videosafety data get {name}" in text


def test_cells_cannot_break_the_table(tmp_path: Path) -> None:
    assert docs_pages.table(("a",), [("x | y\nz",)]) == "| a |\n| --- |\n| x \\| y z |\n"


def test_pages_of_sets_that_are_no_more_are_removed(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gone.md").write_text("old")
    docs_pages.write(tmp_path)
    assert sorted(path.stem for path in (tmp_path / "benchmarks").iterdir()) == sorted(catalog())
