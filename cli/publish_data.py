"""`videosafety publish dataset|results|leaderboard`: sets, figures and a page to the Hub, or with --dry-run what would go up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from videosafety.hub_cards.upload import Pushed, Upload

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the files and the card; nothing is sent.")]
Public = Annotated[bool, typer.Option("--public", help="Show it to everyone once all of it is up. Else a new repository is private.")]
Results = Annotated[list[Path], typer.Argument(help="Folders or *_results.json files of lmms-eval --output_path … --log_samples.")]
Partial = Annotated[bool, typer.Option("--partial", help="Take runs with --limit too; the figures then say so.")]


def dataset(
    name: Annotated[str, typer.Argument(help="vsb, or a folder with rows.jsonl and the videos that it names.")],
    repo: Annotated[str, typer.Option(help="ORG/NAME of the data set on the Hub.")],
    cells: Annotated[str, typer.Option(help="Only these cells, with commas between. Without harm in them the set is not gated.")] = "",
    licence: Annotated[str | None, typer.Option("--license", help="Of a folder: as the Hub writes it, such as cc-by-4.0.")] = None,
    title: Annotated[str | None, typer.Option(help="Of a folder: what the set is called; else the folder's name.")] = None,
    gate: Annotated[
        str | None, typer.Option(help="auto or manual: how requests for access are answered. A set with harm in it is gated (auto) anyway.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="FRAMEWORK", help="Write eval.yaml too, for the Hub's benchmarks, with this framework: a name that the Hub knows."
        ),
    ] = None,
    public: Public = False,
    dry_run: DryRun = False,
) -> None:
    """Publish a safety set: Parquet with the clips inside, one split a cell, card with statistics, gate, Croissant file.

    videosafety publish dataset vsb --repo ORG/vsb-open
    """
    from videosafety.hub_cards import dataset as made
    from videosafety.hub_cards.safety_set import load_set
    from videosafety.hub_cards.upload import GATES, PublishError, check_repo

    try:
        check_repo(repo)
        if gate not in (None, *GATES):
            raise PublishError(f"--gate {gate}: give auto or manual")
        found = load_set(name, [cell.strip() for cell in cells.split(",") if cell.strip()], licence, title)
        with _scratch() as scratch:
            ready = made.make(found, repo, Path(scratch), gate=gate, public=public, benchmark=benchmark)
            if dry_run:
                _show(ready.upload)
                return
            pushed = _push(ready.upload)
    except ValueError as error:
        raise _fail(error) from error
    tasks = ",".join(f"vsb_{cell}" for cell in found.rows if cell in made.TASK_CELLS)
    if tasks:
        print(f"Run it: VIDEOSAFETY_VSB={repo}@{pushed.commit} lmms-eval --tasks {tasks} --model …")


def results(
    paths: Results,
    model: Annotated[str, typer.Option(help="ORG/NAME of the model that the results are of.")],
    pr: Annotated[bool, typer.Option("--pr/--commit", help="Propose the change, as one must for others' models, or make it.")] = False,
    evaluated_as: Annotated[
        str | None, typer.Option(help="What the results call the model, where that is a folder with the very same checkpoint.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="SET=ORG/NAME@COMMIT", help="Where on the Hub a set lies that was not read from there, such as vsb=…@…."),
    ] = None,
    samples_repo: Annotated[
        str | None, typer.Option(help="ORG/NAME of a data set for the rows: verdicts and hashes, without what was asked and answered.")
    ] = None,
    with_samples: Annotated[
        bool, typer.Option("--with-samples", help="Rows with queries and answers. Only into a gated --samples-repo: else nothing is sent.")
    ] = False,
    partial: Partial = False,
    dry_run: DryRun = False,
) -> None:
    """Publish the figures of a model: .eval_results, model-index and a table in its card, with n, interval, judge, policy and command.

    videosafety publish results results/ --model ORG/NAME --dataset vsb=ORG/vsb-open@COMMIT
    """
    from dataclasses import replace

    from videosafety.hub_cards import results as made
    from videosafety.hub_cards import samples
    from videosafety.hub_cards.upload import PublishError, check_repo

    try:
        check_repo(model)
        if with_samples and not samples_repo:
            raise PublishError("--with-samples needs --samples-repo ORG/NAME: a data set that is gated")
        if samples_repo:
            check_repo(samples_repo)
        runs = made.read_runs(paths, partial)
        lines = made.at_homes(made.of_model(runs, model, evaluated_as), _pairs(dataset or []))
        kept, readme = (_there(model, name, dry_run) for name in (made.KEPT, "README.md"))
        with _scratch() as scratch:
            rows = samples.make(runs, lines, samples_repo, model, Path(scratch), with_samples) if samples_repo else None
            if rows is not None and dry_run:
                _show(rows)
            elif rows is not None:
                _push(rows)
        if samples_repo:
            lines = [replace(line, source=f"{_endpoint()}/datasets/{samples_repo}") for line in lines]
        upload = made.make(lines, model, kept, readme, pr)
        if dry_run:
            _show(upload)
            return
        _push(upload)
    except ValueError as error:
        raise _fail(error) from error
    for line in (line for line in lines if line.figure is None):
        print(f"{line.name}: {line.n_scored} of {line.n} rows scored: in the card's table, and no figure for it in the metadata.")
    if away := sorted({line.dataset for line in lines if not line.data_hub}):
        names = ", ".join(away)
        print(f"Not in .eval_results, which takes data sets of the Hub: {names}. Name the place: --dataset {away[0]}=ORG/NAME@COMMIT")


def leaderboard(
    paths: Results,
    repo: Annotated[str, typer.Option(help="ORG/NAME of the data set, and of the Space beside it.")],
    title: Annotated[str, typer.Option(help="What the page is called.")] = "Video safety leaderboard",
    partial: Partial = False,
    public: Public = False,
    dry_run: DryRun = False,
) -> None:
    """Publish figures of several models: a data set (results.parquet), and a static Space with table, radar and DSR against FRR.

    videosafety publish leaderboard results/a results/b --repo ORG/video-safety
    """
    from videosafety.hub_cards import leaderboard as made
    from videosafety.hub_cards.results import read_runs
    from videosafety.hub_cards.upload import check_repo

    try:
        check_repo(repo)
        runs = read_runs(paths, partial)
        with _scratch() as scratch:
            for upload in made.make(runs, repo, title, Path(scratch), public):
                if dry_run:
                    _show(upload)
                else:
                    _push(upload)
    except ValueError as error:
        raise _fail(error) from error


def _pairs(given: list[str]) -> dict[str, str]:
    """SET=PLACE options as a mapping. Raises PublishError for anything else."""
    from videosafety.hub_cards.upload import PublishError

    pairs = {}
    for entry in given:
        name, equals, place = entry.partition("=")
        if not equals or not name or name in pairs:
            raise PublishError(f"--dataset {entry}: give each set once, as SET=ORG/NAME@COMMIT")
        pairs[name] = place
    return pairs


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files, beside the clips: there is room."""
    from videosafety.lmms_eval_tasks.data import cache_dir

    cache_dir().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=cache_dir(), prefix="publish-")


def _there(model: str, name: str, dry_run: bool) -> str | None:
    """A file of the model's repository, None where there is none; in a dry run also where the Hub is not reached, which is said."""
    from videosafety.hub_cards.upload import PublishError, read_remote

    try:
        return read_remote(model, "model", name)
    except PublishError as error:
        if not dry_run:
            raise
        print(f"Shown as if {model} had no {name} yet: {error}")
        return None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _show(upload: Upload) -> None:
    """The dry run: what would be sent where, and the card."""
    from videosafety.hub_cards.upload import check_card, sizes

    card = upload.files["README.md"]
    text = card.decode("utf-8") if isinstance(card, bytes) else card.read_text(encoding="utf-8")
    check_card(text, upload.kind, online=False)
    access = f", access on request ({upload.gate})" if upload.gate else ""
    shown = "as a pull request" if upload.create_pr else "public when all is up" if upload.public else "private where it is new"
    print(f"{upload.kind} {upload.repo}: {shown}{access}. Nothing is sent (--dry-run).")
    for name, size in sizes(upload):
        print(f"{size:>14,}  {name}")
    print(f"\n--- README.md ---\n{text}")


def _push(upload: Upload) -> Pushed:
    """Send it, and say what came of it."""
    from videosafety.hub_cards.upload import push

    done = push(upload)
    if done.pull_request:
        print(f"{done.pull_request}: {'proposed' if done.changed else 'is open already, with the same content'}")
    elif done.changed:
        print(f"{done.url}: commit {done.commit}")
    else:
        print(f"{done.url}: nothing has changed, it stays at commit {done.commit}")
    return done


def _fail(error: Exception) -> typer.Exit:
    Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(2)
