"""The command `videosafety demo-app`: the demo page here, or its folder for a Space."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def demo_app(
    model: Annotated[str, typer.Option(help="Alarm model: a folder, or a Hub id with --revision. Its own code is run.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub id.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Thresholds from guard calibrate; 0.5 without.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 shows it to the network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860.")] = None,
    space: Annotated[Path | None, typer.Option(help="Write the folder of a Space for this Hub id here, and serve nothing.")] = None,
) -> None:
    """Show a page: upload or pick a clip, ask, see the answer, both alarm probabilities and the timeline."""
    try:
        if importlib.util.find_spec("gradio") is None:
            raise ValueError("the demo needs gradio: pip install 'videosafety[demo]'")
        from videosafety.hub_cards.demo_app import export, serve

        if space:
            folder = export(space, model, revision or "")
            print(f"{folder}: a Space for {model}. Upload it: hf upload ORG/NAME {folder} --repo-type space --private")
            return
        from videosafety.hf_models.calibrate import load_calibration
        from videosafety.hf_models.guard import Guard

        title = Path(model).resolve().name if Path(model).is_dir() else model
        serve(Guard.load(model, revision, device, calibration=load_calibration(calibration)), title, host, port)
    except ValueError as error:
        Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
