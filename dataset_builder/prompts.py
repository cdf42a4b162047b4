"""The prompts of the stages, filled so that data cannot speak to the model, and frames as a model is shown them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videosafety.dataset_builder.rows import Rejected
from videosafety.lmms_eval_tasks.judge.policy import policy
from videosafety.lmms_eval_tasks.judge.prompt import MAX_PIXELS, Template
from videosafety.lmms_eval_tasks.video import MediaError, Sampling, decode

TEMPLATES = Path(__file__).with_name("templates")
FPS = 4.0  # frames a second that models' frames are chosen from


@lru_cache(maxsize=16)
def template(name: str) -> Template:
    """One file of `templates/`. Its hash is part of every row that it helped to make."""
    return Template(str(TEMPLATES / f"{name}.jinja"))


def messages(name: str, shown: Mapping[str, str], images: list[str] | None = None, **context: Any) -> list[dict[str, Any]]:
    """Chat messages of the template `name`: `shown` is data, `context` is ours, `images` are data URLs."""
    urls = images or []
    return template(name).fill(shown, images=len(urls), **context).messages(urls)


def frames(file: str, most: int, span: tuple[float, float] | None = None) -> list[str]:
    """JPEG data URLs of at most `most` frames, spread evenly over the clip or over [start, end) seconds of it.

    Raises:
        Rejected: the clip cannot be decoded.
    """
    try:
        clip = decode(file, Sampling(FPS, 240 if span else most, MAX_PIXELS))
    except MediaError as error:
        raise Rejected(str(error).replace(file, "the clip")) from error
    chosen = np.arange(len(clip.seconds))
    if span is not None:
        inside = [i for i, second in enumerate(clip.seconds) if span[0] <= second < span[1]]
        chosen = np.array(inside or [int(np.searchsorted(clip.seconds, span[0], "right")) - 1])
    if len(chosen) > most:
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).round().astype(int)]
    return [_url(clip.frames[i]) for i in chosen]


def _url(frame: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


@lru_cache(maxsize=1)
def bodies() -> dict[str, dict[str, Any]]:
    """Category -> title, definition, not_allowed, allowed."""
    return {name: body for group in policy()["groups"].values() for name, body in group["categories"].items()}
