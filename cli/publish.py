"""`videosafety publish`: checkpoints, data sets, results and leaderboards to the Hub, checked first; --dry-run shows what would go up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from videosafety import publish_data

if TYPE_CHECKING:
    from videosafety.hub_cards.publish import Plan

app = typer.Typer(
    name="publish",
    help="Publish to the Hub: private unless you say --public, nothing sent where nothing changed, --dry-run to look first.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("dataset")(publish_data.dataset)
app.command("results")(publish_data.results)
app.command("leaderboard")(publish_data.leaderboard)


@app.command()
def model(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint with its processor: with alarm tokens, folded, or plain.")],
    repo: Annotated[str, typer.Option(help="ORG/NAME of the model on the Hub.")],
    licence: Annotated[
        str | None, typer.Option("--license", help="As the Hub writes it, such as apache-2.0; else what the folder's README.md says.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of what to leave out, such as 'checkpoint-*'. May be repeated.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Pattern of rows (.jsonl, .parquet, .csv) and media that are to go up. May be repeated.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Show it to everyone once it is checked. Else a new repository is private.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change, as one must for others' repositories.")] = False,
    revision_tag: Annotated[str | None, typer.Option(help="A tag for the new commit, such as v1.0. Tags are not moved.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the folder that is not videosafety's own, to load it back.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the card; nothing is sent, nothing of it is run.")] = False,
) -> None:
    """Publish a checkpoint: weights, code, processor and a card made from its files.

    Refuses pickles, secrets, rows, media, a missing licence and broken code. It is done when a fresh process has loaded what went up, with
    equal logits.

    videosafety publish model runs/at_sft --repo ORG/NAME --license apache-2.0
    """
    from videosafety.hub_cards.publish import plan, publish
    from videosafety.hub_cards.upload import PublishError
    from videosafety.lmms_eval_tasks.judge.redact import redact

    try:
        if create_pr and (public or revision_tag):
            raise PublishError("--create-pr leaves the repository as it is: --public and --revision-tag are for when the change is merged")
        made = plan(
            folder, repo, licence=licence, exclude=exclude or (), include=include or ()
        )  # what is wrong here is said before the Hub is asked
        kept = _kept(repo, dry_run)
        if kept is not None:
            made = plan(folder, repo, licence=licence, exclude=exclude or (), include=include or (), kept=kept)
        for warning in made.warnings:
            Console(stderr=True).print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
        if dry_run:
            _show(made, "as a pull request" if create_pr else "public when it is checked" if public else "private where it is new")
            return
        done = publish(folder, made, public=public, create_pr=create_pr, tag=revision_tag, trust_code=trust_remote_code)
    except ValueError as error:
        # once more: errors of libraries come here too
        Console(stderr=True).print(f"videosafety: {redact(str(error))}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if done.pull_request and not done.changed:
        print(f"{done.pull_request} is open already, with the same content")
    elif not done.changed:
        print(f"{done.url}: nothing has changed, it stays at commit {done.commit}")
    else:
        for name in done.removed:
            print(f"removed {name}, which the folder does not hold")
        print(f"Loaded back in a fresh process, equal bit for bit: {', '.join(done.compared)}")
        print(f"{done.pull_request or done.url}: commit {done.commit}")
        code = ",trust_remote_code=True" if made.code else ""
        print(f"  lmms-eval --model videosafety_r1 --model_args pretrained={repo},revision={done.commit}{code} --tasks vsb")


def _kept(repo: str, dry_run: bool) -> str | None:
    """The results that were published to the repository; in a dry run none where the Hub is not reached, which is said."""
    from videosafety.hub_cards.publish import remote_results
    from videosafety.hub_cards.upload import PublishError

    try:
        return remote_results(repo)
    except PublishError as error:
        if not dry_run:
            raise
        print(f"Shown as if {repo} held no results yet: {error}")
        return None


def _show(made: Plan, how: str) -> None:
    """The dry run: what would be sent where, and the card."""
    print(f"model {made.repo}: {how}. Nothing is sent (--dry-run).")
    for name, body in sorted(made.files.items()):
        print(f"{len(body) if isinstance(body, bytes) else body.stat().st_size:>14,}  {name}")
    for name in made.left_out:
        print(f"{'left out':>14}  {name}")
    if made.foreign:
        print(f"Not videosafety's own code, so --trust-remote-code will be needed: {', '.join(made.foreign)}")
    print(f"\n--- README.md ---\n{made.card}")
