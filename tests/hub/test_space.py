"""Tests of `videosafety publish leaderboard`: the data set, the Space and its page, which stands alone and is made from the data set."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard, hf_hub_download

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub
from publishing import elsewhere, published, refused
from test_report import HOSTILE, SHARES, rows, some, write_run
from videosafety.hub_cards import leaderboard
from videosafety.hub_cards.lines import BOARD, TWINS, Line, as_board, board_lines, read_table
from videosafety.hub_cards.results import read_runs
from videosafety.hub_cards.space import page, points
from videosafety.lmms_eval_tasks.report.board import board
from videosafety.lmms_eval_tasks.report.load import Run

REPO = "safety-lab/board"
LFS = pytest.mark.parametrize("hub", ["lfs"], indirect=True)


def runs_in(folder: Path) -> list[Run]:
    """Three models: two whole, one with too few rows to print; the second was judged by another judge."""
    write_run(folder / "a", {task: rows(task, share) for task, share in SHARES.items()}, model="org/first")
    other = {task: rows(task, min(0.97, share + 0.15)) for task, share in SHARES.items() if not task.endswith("_text")}
    for lines in other.values():
        for line in lines:
            next(line[metric] for metric in ("dsr", "frr") if metric in line)["judge"] = "other@1"
    write_run(folder / "b", other, model="org/second")
    write_run(folder / "c", {"vsb_hh": some("vsb_hh", [1.0, 0.0]), "vsb_safeq": some("vsb_safeq", [None] * 12)}, model="org/<b>third</b>")
    return read_runs([folder], partial=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return runs_in(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def lines(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """As they come back from results.parquet."""
    folder = tmp_path_factory.mktemp("made")
    leaderboard.make(runs, REPO, "Title", folder)
    return read_table(folder / "results.parquet")


@pytest.fixture(scope="module")
def made(lines: list[Line]) -> str:
    return page(lines, f"Safety {HOSTILE}", REPO)


def test_the_board_comes_back_from_the_table_as_the_report_has_it(runs: list[Run], lines: list[Line]) -> None:
    for scope, twins in ((BOARD, False), (TWINS, True)):
        wanted, found = board(runs, twins), as_board(lines, scope)
        assert found.columns == wanted.columns
        assert [(row.judges, row.cells) for row in found.rows] == [(row.judges, row.cells) for row in wanted.rows]
        assert len(found.notes) == len(wanted.notes)
    assert board_lines(runs), "there is something to compare"


def test_the_page_stands_alone_and_what_models_are_called_stays_text(made: str) -> None:
    body = made.partition("<style>")[0] + made.partition("</style>")[2]
    assert not re.search(r"(?:src|href)=[\"'](?!#|https://huggingface\.co/datasets/)", body)
    assert "<b>third</b>" not in made
    assert html.escape("<b>third</b>") in made
    assert '<script>alert("x")' not in made
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in made
    assert "default-src 'none'" in made


def test_the_plot_holds_only_figures_that_compare_and_can_be_printed(lines: list[Line], made: str) -> None:
    assert [point.model for point in points(lines)["VSB-Open"]] == ["org/first"], "the second has another judge, the third too few rows"
    assert re.search(r'aria-label="DSR against FRR: org/first [\d.]+ % / [\d.]+ %"', made)
    assert "n=2, too few" in made
    assert "no verdicts" in made
    assert 'class="radar"' in made


def test_a_board_without_anything_to_plot_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "c", {"vsb_hh": some("vsb_hh", [1.0] * 12)}, samples=False)
    text = page(leaderboard.lines_of(read_runs([tmp_path], partial=False)), "T", REPO)
    assert "No model has both" in text
    assert "made without --log_samples" in text


def test_a_leaderboard_goes_up_and_loads(here: Hub, home: Path, tmp_path: Path) -> None:
    runs_in(tmp_path)
    args = ("leaderboard", tmp_path, "--repo", REPO, "--title", "Safety")
    published(*args)
    assert published(*args).count("nothing has changed") == 2, "data set and Space"
    assert HfApi().dataset_info(REPO).private is HfApi().space_info(REPO).private is True
    card = SpaceCard.load(REPO, repo_type="space")
    assert (card.data.sdk, card.data.app_file) == ("static", "index.html")
    card.validate(repo_type="space")
    assert "<title>Safety</title>" in Path(hf_hub_download(REPO, "index.html", repo_type="space")).read_text(encoding="utf-8")
    code = f'import datasets, json; print(json.dumps(datasets.load_dataset("{REPO}", split="results").to_list()))'
    found = elsewhere(here, home, code)
    assert [Line(**row) for row in found] == read_table(Path(hf_hub_download(REPO, "results.parquet", repo_type="dataset")))


@LFS
def test_a_dry_run_and_a_broken_folder_send_nothing(here: Hub, tmp_path: Path) -> None:
    runs_in(tmp_path)
    shown = published("leaderboard", tmp_path, "--repo", REPO, "--dry-run", "--public")
    assert "space safety-lab/board: public when all is up" in shown
    assert "index.html" in shown
    (tmp_path / "a" / "org__first" / "20260131_093000_results.json").write_text("{")
    assert "not valid JSON" in refused("leaderboard", tmp_path, "--repo", REPO)
    assert here.log == []


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_draws_the_page_and_sorts_it(made: str, tmp_path: Path) -> None:
    """Headless Chromium: the script runs under the page's own policy (it turns heads into buttons), and nothing is blocked."""
    (tmp_path / "index.html").write_text(made, encoding="utf-8")
    base = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    address = (tmp_path / "index.html").as_uri()
    dom = subprocess.run([*base, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert dom.stdout.count('class="sort"') == 2 + 2, "two columns on the board, two on that of twins"
    shot = tmp_path / "page.png"
    subprocess.run([*base, f"--screenshot={shot}", "--window-size=1200,2400", address], capture_output=True, timeout=120, check=True)
    assert shot.stat().st_size > 50_000, "a page of one colour compresses to less"
