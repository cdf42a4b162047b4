"""`videosafety data build` and `videosafety data review`: a safety set from one's own videos, and the people who check it."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def _fail(error: Exception) -> typer.Exit:
    """Print the one line that says what is wrong; the exit status is 2, as for any wrong use of a command."""
    Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(2)


def build(
    config: Annotated[
        Path, typer.Argument(help="The YAML file that says which videos, models and shares; its folder is where paths start.")
    ],
    engine: Annotated[str, typer.Option(help="local (threads of one machine) or ray (Ray Data; RAY_ADDRESS names a cluster).")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Videos or clips worked on at once.")] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Build a safety set. Run it again after an interruption, or with more videos: what is done is not done again.

    Exit status 1 where servers failed: the set is written without what they owed, and the next run asks again.
    """
    from videosafety.dataset_builder.build import BuildError
    from videosafety.dataset_builder.build import build as make
    from videosafety.dataset_builder.config import ConfigError, load
    from videosafety.dataset_builder.review import ReviewError

    if engine not in ("local", "ray"):
        raise _fail(ValueError(f"--engine must be local or ray, got {engine!r}"))
    if engine == "ray" and not importlib.util.find_spec("ray"):
        raise _fail(ValueError("--engine ray needs Ray: pip install 'videosafety[build]'"))
    try:
        settings = load(config)
        found = make(settings, engine, workers, quiet)
    except (ConfigError, BuildError, ReviewError, OSError) as error:
        raise _fail(error) from error
    out = Console(soft_wrap=True, highlight=False)
    rows = ", ".join(f"{name} {n:,}" for name, n in found.rows.items() if n)
    out.print(f"{found.videos:,} videos, {found.clips.total():,} clips, rows: {rows}", markup=False)
    for warning in found.warnings:
        out.print(f"note: {warning}", style="yellow", markup=False)
    out.print(f"left out: {found.rejected.total():,}, each with its reason in {found.folder / 'report.jsonl'}", markup=False)
    out.print(f"to review: {found.to_review:,}: videosafety data review {found.folder}", markup=False)
    out.print(f"look at:  {found.folder / 'stats.html'}", markup=False)
    out.print(f"evaluate: VIDEOSAFETY_DATA_DIR={found.folder} lmms-eval --tasks vsb_hh --model …", markup=False)
    out.print(f"publish:  videosafety publish dataset {found.folder / 'vsb'} --repo ORG/NAME --license {settings.licence}", markup=False)
    if found.to_try_again:
        Console(stderr=True).print(
            f"videosafety: {found.to_try_again} answers are owed by servers that failed; run this again", style="yellow"
        )
        raise typer.Exit(1)


def review(
    folder: Annotated[Path, typer.Argument(help="The folder of a built set.")],
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.")] = 8422,
    read: Annotated[Path | None, typer.Option("--read", help="Take up a filled-in review/queue.csv instead of showing the page.")] = None,
) -> None:
    """Show disputed clips and a random sample to reviewers, on a page of this machine. The next build takes their decisions up."""
    from videosafety.dataset_builder.review import ReviewError, read_csv
    from videosafety.dataset_builder.review_page import serve

    try:
        if read is not None:
            print(f"{read_csv(read, folder / 'review')} decisions taken up; build again to see them in the set")
            return
        with serve(folder, port) as address:
            print(f"Review page: {address} (end with Ctrl-C)", flush=True)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                print()
    except (ReviewError, OSError) as error:
        raise _fail(error) from error
