"""Pictures for guard models that see: images as they are, videos as a few frames spread over the whole."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from ...video import MediaError, Sampling, content_hash, decode, load_image
from ..verdict import Reason
from .base import GuardError, Message, Prompt

FRAMES = 4  # of a video: the guard models were trained with a handful of images
MAX_PIXELS = 1120 * 1120
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def pictures(path: str) -> list[Image.Image]:
    """The picture in an image file, or up to `FRAMES` frames of a video, RGB. Raises GuardError(media_error) when it cannot be read."""
    try:
        if Path(path).suffix.lower() in _IMAGES:
            return [load_image(path, MAX_PIXELS)]
        return [Image.fromarray(frame) for frame in decode(path, Sampling(fps=1.0, max_frames=FRAMES, max_pixels=MAX_PIXELS)).frames]
    except MediaError as error:
        raise GuardError(Reason.MEDIA_ERROR, str(error)) from error


def show(prompt: Prompt, part: Callable[[Image.Image], Message]) -> Prompt:
    """The prompt with every image part that names a path replaced by what `part` makes of each of its pictures. Raises as `pictures`."""
    if isinstance(prompt, str):
        return prompt

    def parts(content: object) -> Iterator[Message]:
        assert isinstance(content, list)
        for piece in content:
            yield from map(part, pictures(piece["path"])) if "path" in piece else [piece]

    return [turn | {"content": list(parts(turn["content"]))} if isinstance(turn["content"], list) else turn for turn in prompt]


def pictured(prompt: Prompt) -> bool:
    """Whether the prompt names pictures."""
    contents = [] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return any("path" in piece for content in contents if isinstance(content, list) for piece in content)


def data_url(picture: Image.Image) -> Message:
    """A picture as OpenAI-compatible servers take it: a JPEG of quality 90 in a data URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=90)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}}


def media_hash(path: str) -> str:
    """The content's hash, or `unreadable`: then no verdict comes of it and nothing is cached."""
    try:
        return content_hash(path)
    except (MediaError, OSError):
        return "unreadable"
