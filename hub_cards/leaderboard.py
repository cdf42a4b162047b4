"""`videosafety publish leaderboard`: figures of several models as a data set (results.parquet), and a static Space made from that file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet
from huggingface_hub import DatasetCardData, SpaceCardData

from videosafety.hub_cards.dataset import environment
from videosafety.hub_cards.lines import BOARD, Line, as_board, board_lines, category_lines, public_name, read_table, task_lines, to_table
from videosafety.hub_cards.samples import RESULTS
from videosafety.hub_cards.space import page
from videosafety.hub_cards.upload import Upload
from videosafety.lmms_eval_tasks.report import summary
from videosafety.lmms_eval_tasks.report.board import Cell
from videosafety.lmms_eval_tasks.report.load import Run


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Every line of a leaderboard over these runs: its cells, its tasks one by one, and DSR by category."""
    lines = [*board_lines(runs), *board_lines(runs, twins=True)]
    for run in runs:
        lines += task_lines(run, public_name(run.model))
        lines += category_lines(run, public_name(run.model), runs)
    return lines


def make(runs: Sequence[Run], repo: str, title: str, scratch: Path, public: bool = False) -> tuple[Upload, Upload]:
    """The data set and the Space, both called `repo`. The page is made from the Parquet file, as anyone could make it again."""
    file = scratch / RESULTS
    scratch.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(to_table(lines_of(runs)), file, compression="zstd")
    lines = read_table(file)
    models = len({line.entry for line in lines})
    message = f"Figures of {models} model{'s' if models != 1 else ''}"
    data: dict[str, bytes | Path] = {"README.md": dataset_card(lines, repo, title).encode(), RESULTS: file}
    space: dict[str, bytes | Path] = {"README.md": space_card(repo, title).encode(), "index.html": page(lines, title, repo).encode()}
    return (
        Upload(repo, "dataset", data, message, public=public),
        Upload(repo, "space", space, message, public=public),
    )


def dataset_card(lines: Sequence[Line], repo: str, title: str) -> str:
    """The README of the leaderboard's data set."""
    data = DatasetCardData(
        pretty_name=title,
        tags=["videosafety", "safety", "leaderboard", "evaluation-results"],
        configs=[{"config_name": "default", "data_files": [{"split": "results", "path": RESULTS}]}],
    )
    template = environment().get_template("leaderboard.md.jinja")
    return template.render(
        metadata=data.to_yaml(),
        title=title,
        repo=repo,
        board=as_board(lines, BOARD),
        lines=lines,
        words=cell_words,
        version=version("videosafety"),
    )


def cell_words(cell: Cell | None) -> str:
    """A cell of the board in a README: the figure with its interval and n, or why there is none."""
    if cell is None:
        return "–"
    rate = cell.rate
    words = summary.value_words(rate)
    if summary.printable(rate):
        words += f" ({summary.interval_words(rate)}, n={rate.n_scored}{f' of {rate.n}' if rate.unscored else ''})"
    return f"{words} [{cell.mark}]" if cell.mark else words


def space_card(repo: str, title: str) -> str:
    """The README of the Space: a static page, no code runs."""
    data = SpaceCardData(
        title=title,
        emoji="🛡️",
        colorFrom="blue",
        colorTo="green",
        sdk="static",
        app_file="index.html",
        pinned=False,
        license="apache-2.0",
        datasets=[repo],
        tags=["leaderboard", "safety", "videosafety"],
        short_description="How safely video models answer",
    )
    return (
        environment().get_template("space.md.jinja").render(metadata=data.to_yaml(), title=title, repo=repo, version=version("videosafety"))
    )
