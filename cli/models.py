"""The commands about alarm-token models: `build-alarm` makes one, `convert` takes the authors' weights, `fold` makes it plain again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Out = Annotated[Path, typer.Option(help="New folder to write the checkpoint to.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a Hub id.")]
Licence = Annotated[str | None, typer.Option(help="Licence for the card; by default what the base's card says.")]


def _fail(error: Exception) -> typer.Exit:
    Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(2)


def build_alarm(
    base: Annotated[str, typer.Option(help="Hub id or folder of a plain checkpoint: its weights (safetensors) and its processor.")],
    out: Out,
    revision: Revision = None,
    family: Annotated[str | None, typer.Option(help="Model family, where config.json's model_type does not tell it.")] = None,
    init: Annotated[str, typer.Option(help="How the vectors start: mean (of all embeddings) or paper_init (zeros).")] = "mean",
    tokens_per_modality: Annotated[int, typer.Option(help="Alarm tokens for the visuals, and as many for the text.")] = 1,
    licence: Licence = None,
) -> None:
    """Make an alarm checkpoint of any checkpoint of a known family: tokens, chat template, code and safetensors in one folder.

    Its heads are untrained: probabilities mean nothing until AT-SFT.
    """
    from videosafety.hf_models import build

    try:
        build.build_alarm(base, out, revision=revision, family=family, init=init, per_modality=tokens_per_modality, licence=licence)
    except ValueError as error:
        raise _fail(error) from error
    print(f"{out}: alarm checkpoint. The heads are untrained: probabilities mean nothing until AT-SFT.")
    print(f'  AutoModelForImageTextToText.from_pretrained("{out}", trust_remote_code=True)')


def convert(
    source: Annotated[str, typer.Option(help="Hub id or folder of a checkpoint with model_type videollama3_qwen2.")],
    out: Out,
    revision: Revision = None,
    vision: Annotated[str | None, typer.Option(help="Hub id or folder with config.json of the vision tower, if not in the config.")] = None,
    licence: Licence = None,
) -> None:
    """Turn the authors' remote-code weights into native ones: VideoLLaMA3, or VideoSafety-R1's training checkpoints with alarm vectors.

    Refuses a checkpoint that does not match key for key and shape for shape.
    """
    from videosafety.hf_models import convert as converting

    try:
        converting.convert(source, out, revision=revision, vision=vision, licence=licence)
    except ValueError as error:
        raise _fail(error) from error
    alarm = (out / "alarm_core.py").exists()
    print(f"{out}: {'alarm checkpoint' if alarm else 'native VideoLlama3 checkpoint'}.")
    if not alarm:
        print(f"  videosafety build-alarm --base {out} --out …")


def fold(
    model: Annotated[str, typer.Option(help="Hub id or folder of an alarm checkpoint.")],
    out: Out,
    revision: Revision = None,
) -> None:
    """Make a plain checkpoint of an alarm checkpoint, for vLLM, SGLang and llama.cpp; the heads go beside it, with a reader."""
    from videosafety.hf_models import fold as folding

    try:
        folding.fold(model, out, revision=revision)
    except ValueError as error:
        raise _fail(error) from error
    print(f"{out}: plain checkpoint, no remote code. Heads: {out / folding.HEADS_FILE}")
