"""The command `videosafety guard`: probabilities of harm without generation, over time, and their calibration."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    invoke_without_command=True,
    help="p(harmful) of what is shown and what is asked, from one prefill of an alarm model, without generation. JSON lines on stdout.",
)

Model = Annotated[str | None, typer.Option(help="Alarm model: a folder, or a Hub id with --revision. Its own code is run.")]
Revision = Annotated[str | None, typer.Option(help="Commit of a Hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
CalibrationFile = Annotated[Path | None, typer.Option("--calibration", help="Thresholds from guard calibrate; 0.5 without.")]
Fps = Annotated[float, typer.Option(help="Frames a second that the model sees.")]
Pixels = Annotated[int | None, typer.Option(help="At most so many pixels a frame.")]


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with the input, or with a file to write, is one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        Console(stderr=True).print(f"videosafety: {words}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


def _check_targets(*files: Path | None) -> None:
    """Asked before the work, not after it. Raises ValueError where one of these files could not be written."""
    for file in filter(None, files):
        if not file.parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.parent}: make it first")
        if file.is_dir():
            raise ValueError(f"{file}: a folder; name a file in it")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ValueError(f"{file}: may not be written: name another file")


@app.callback()
def guard(
    context: typer.Context,
    model: Model = None,
    video: Annotated[Path | None, typer.Option(help="A video.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image.")] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Every video and image below this folder.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="One row a line: video or image, text, id; labels are carried over.")] = None,
    text: Annotated[str, typer.Option(help="What is asked; of rows without their own.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the JSON lines here instead.")] = None,
    revision: Revision = None,
    calibration: CalibrationFile = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a prefill.")] = 8,
    fps: Fps = 1.0,
    max_frames: Annotated[int, typer.Option(min=1, help="At most so many frames a video.")] = 180,
    max_pixels: Pixels = None,
) -> None:
    """Judge media and text. A row that cannot be read has an `error` and no probability; exit status 1 where there is one."""
    if context.invoked_subcommand is not None:
        return
    with _told():
        rows = _rows(video, image, folder, jsonl, text)
        _check_targets(out)
        judge = _load(model, revision, device, calibration, fps, max_frames, max_pixels)
        failed = _write(judge.judge(rows, batch_size), out)
    if failed:
        Console(stderr=True).print(f"videosafety: {failed} of {len(rows)} rows could not be judged: see their `error`", style="yellow")
        raise typer.Exit(1)


def _rows(video: Path | None, image: Path | None, folder: Path | None, jsonl: Path | None, text: str) -> list[Any]:
    from videosafety.hf_models.guard import Row, rows_of_file, rows_of_folder

    given = [name for name, value in (("--video", video), ("--image", image), ("--dir", folder), ("--jsonl", jsonl)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of them")
    if folder:
        return rows_of_folder(folder, text)
    if jsonl:
        return rows_of_file(jsonl, text)
    if not given and not text:
        raise ValueError("nothing to judge: give --video, --image, --dir, --jsonl or --text")
    return [Row(str(video or image or "text"), text, video=video, image=image)]


def _load(
    model: str | None, revision: str | None, device: str, calibration: Path | None, fps: float, max_frames: int, max_pixels: int | None
) -> Any:
    if not model:
        raise ValueError("give --model: the folder or Hub id of an alarm model")
    from videosafety.hf_models.calibrate import load_calibration
    from videosafety.hf_models.guard import Guard
    from videosafety.lmms_eval_tasks.video import Sampling

    thresholds, sampling = (
        load_calibration(calibration),
        Sampling(fps, max_frames, max_pixels),
    )  # before the weights: their errors are quick
    return Guard.load(model, revision, device, sampling=sampling, calibration=thresholds)


def _write(results: Iterator[dict[str, Any]], out: Path | None) -> int:
    """Print or write each result as it comes; how many have an error."""
    failed = 0
    with open(out, "w", encoding="utf-8") if out else nullcontext(sys.stdout) as target:
        for result in results:
            failed += result["error"] is not None
            target.write(json.dumps(result, ensure_ascii=False) + "\n")
            target.flush()
    return failed


@app.command()
def timeline(
    video: Annotated[Path, typer.Option(help="A video, of any length.")],
    model: Model = None,
    text: Annotated[str, typer.Option(help="What is asked about it.")] = "",
    window: Annotated[float, typer.Option(help="Seconds a segment.")] = 8.0,
    stride: Annotated[float, typer.Option(help="Seconds from one segment's start to the next one's.")] = 4.0,
    plot: Annotated[Path | None, typer.Option(help="Draw it here, with the frames at the peaks: .png, .svg or .pdf.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here instead.")] = None,
    revision: Revision = None,
    calibration: CalibrationFile = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Segments a prefill.")] = 8,
    fps: Fps = 1.0,
    max_frames: Annotated[int | None, typer.Option(min=1, help="At most so many frames; by default an hour's at one a second.")] = None,
    max_pixels: Pixels = None,
) -> None:
    """Score a long video segment by segment, from one decode: where is the harm?"""
    from videosafety.hf_models import timeline as tool
    from videosafety.lmms_eval_tasks.video import MediaError

    with _told():
        if plot and plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"{plot}: name a .png, .svg or .pdf")
        _check_targets(plot, out)
        judge = _load(model, revision, device, calibration, fps, max_frames or tool.MAX_FRAMES, max_pixels or tool.MAX_PIXELS)
        try:
            scores, clip = tool.timeline(judge, video, text, window, stride, batch_size)
        except MediaError as error:
            raise ValueError(str(error)) from error
        found = json.dumps(scores.as_json(), ensure_ascii=False)
        if out:
            out.write_text(found + "\n", encoding="utf-8")
        else:
            print(found)
        if plot:  # after the scores, which took longer
            tool.plot(scores, clip, threshold=judge.calibration.visual.value if calibration else None).savefig(plot, dpi=120)


@app.command()
def calibrate(
    labels: Annotated[Path, typer.Option(help="Rows that guard wrote, with visual_label and textual_label: 0 safe, 1 harmful.")],
    target: Annotated[float, typer.Option(help="Wanted false-alarm rate of each modality: share of safe rows that are flagged.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option(help="Write the calibration file here: for --calibration and model_args calibration=….")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Fit a temperature, and a threshold for a false-alarm rate; print ECE and AUROC.

    videosafety guard --model M --jsonl labelled.jsonl --out scored.jsonl
    videosafety guard calibrate --labels scored.jsonl --target 0.01 --out calibration.json
    """
    from videosafety.hf_models.calibrate import MODALITIES
    from videosafety.hf_models.calibrate import calibrate as fit
    from videosafety.hf_models.guard import read_jsonl

    with _told():
        _check_targets(out)
        found = fit([row for _, row in read_jsonl(labels)], target)
        found["labels"] = labels.name
        if out:
            out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, why in found["warnings"].items():
        Console(stderr=True).print(f"videosafety: {name}: {why}", style="red", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("", *MODALITIES, box=None, pad_edge=False, header_style="bold")
    fitted = [found[name] for name in MODALITIES]
    for key in next(part for part in fitted if part):
        table.add_row(*map(Text, (key.replace("_", " "), *("–" if part is None else _shown(part[key]) for part in fitted))))
    console = Console()
    console.print(table)
    for name, why in found["left_out"].items():
        console.print(Text(f"! {name}: {why}", style="yellow"))
    for name, part in zip(MODALITIES, fitted, strict=True):
        if part and target and part["n_safe"] * target < 1:
            console.print(
                Text(f"! {name}: {part['n_safe']} safe rows cannot show a rate of {target:g}; {1 / target:.0f} could", style="yellow")
            )


def _shown(value: float | tuple[float, float] | None) -> str:
    if isinstance(value, tuple):
        return " to ".join(f"{end:.3f}" for end in value)
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
