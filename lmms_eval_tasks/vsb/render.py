"""Turns the shots of a VSB-Open clip into frames and into a lossless video file, with the same pixels on every machine.

Nothing here depends on a font engine, a drawing library or libm: text is cut from an atlas, pictograms are drawn by pictograms.py,
positions and blending are integer arithmetic. What a frame looks like never depends on `harm`.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import cast

import av
import numpy as np

from .glyphs import CAPTION_SIZE, CARD_SIZES, PAD, check_text, line_height, text_mask, text_width
from .pictograms import HEIGHT, WIDTH, background, card_colour, pictogram

FPS = 8
KEYS = ("seconds", "background", "items", "motion", "caption", "card", "harm")
MOTIONS = ("still", "drift", "bounce", "shake", "approach", "circle", "blink", "rise")
# number of items -> size, distance between centres, how far every second one is set lower and the others higher (pixels)
LAYOUT = {1: (188, 0, 0), 2: (156, 178, 0), 3: (124, 132, 0), 4: (100, 100, 0), 5: (106, 72, 48)}
MIDDLE = 148  # height in pixels on which the items are centred: the caption's strip below stays free
SINE = (0, 98, 181, 237, 256, 237, 181, 98, 0, -98, -181, -237, -256, -237, -181, -98)  # 256 * sine over 16 frames (2 s)
SHAKE = ((6, -3), (-6, 2), (5, 4), (-7, -2), (7, 0), (-5, -4), (4, 3), (-6, 1))
DIMMED = 80  # of 255: items that blink fade but never vanish, so sparse frame sampling cannot miss them
CAPTION_LINES, CARD_LINES = 2, 4
CAPTION_WIDTH, CARD_WIDTH = WIDTH - 24, WIDTH - 72
STRIP_ALPHA = 176
CARD_MARGIN, CARD_BORDER = 14, 5
WHITE = (255, 255, 255)


def render(shots: list[dict]) -> Iterator[np.ndarray]:
    """Every frame of a clip, in order: uint8 (336, 448, 3), RGB, FPS frames a second; each is a new array.

    Raises ValueError, before the first frame, for an unknown or missing key, an unknown item, background or motion, a length that is
    no multiple of 0.5 s, text that does not fit or has a character that the atlas lacks; it names the thing and what is allowed.
    """
    scenes = [_prepare(shot) for shot in shots]
    for shot, scene in zip(shots, scenes, strict=True):
        if shot.get("card"):
            for _ in range(_frames(shot)):
                yield scene.copy()
        else:
            yield from _animate(shot, scene)


def harm_spans(shots: list[dict]) -> list[tuple[float, float]]:
    """The harmful stretches of a clip as (start, end) in seconds; shots that follow each other are merged."""
    spans: list[tuple[float, float]] = []
    start = 0.0
    for shot in shots:
        end = start + shot["seconds"]
        if shot.get("harm", False):
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        start = end
    return spans


def write_clip(shots: list[dict], path: str | Path) -> str:
    """Draws a clip and writes it as `write_frames` does. Raises ValueError like `render`, or when there is no shot."""
    if not shots:
        raise ValueError("a clip needs at least one shot")
    return write_frames(render(shots), FPS, path)


def write_frames(frames: Iterable[np.ndarray], rate: int, path: str | Path) -> str:
    """Writes frames, uint8 (336, 448, 3), `rate` a second, as mp4 (lossless RGB H.264, no audio); the file appears only when complete.

    Returns the sha256, in hex, of the RGB bytes of all frames in order.
    """
    path = Path(path)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        draft = Path(folder) / "clip.mp4"
        with av.open(str(draft), "w") as container:
            # rate control and B-frames off: exact pixels, and frame n is packet n; one thread: the same file for the same encoder
            options = {"preset": "medium", "qp": "0", "bf": "0", "g": "16"}
            stream = cast(av.VideoStream, container.add_stream("libx264rgb", rate=rate, options=options))
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
            stream.codec_context.thread_count = 1
            for number, pixels in enumerate(frames):
                digest.update(pixels.tobytes())
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        draft.replace(path)
    return digest.hexdigest()


def frames_digest(path: str | Path) -> str:
    """The sha256, in hex, of the RGB bytes of all frames of a video file, in order: what `write_clip` returned, if the file is intact."""
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray(format="rgb24").tobytes())
    return digest.hexdigest()


def _prepare(shot: dict) -> np.ndarray:
    """Checks a shot and draws what stands still in it: background and card. Raises ValueError."""
    for key in shot:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r} in a shot; allowed: {' '.join(KEYS)}")
    for key in ("seconds", "background"):
        if key not in shot:
            raise ValueError(f"a shot lacks {key!r}: {shot}")
    _frames(shot)
    items, motion, card, caption = shot.get("items", []), shot.get("motion", "still"), shot.get("card"), shot.get("caption")
    if motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}; allowed: {' '.join(MOTIONS)}")
    scene = background(shot["background"]).copy()
    if card:
        if items or "motion" in shot:
            raise ValueError(f"card {card!r}: a card has no items and no motion")
        _draw_card(scene, card, shot["background"], HEIGHT - _strip_height(caption))
        if caption:
            _draw_caption(scene, caption)
        return scene
    if len(items) not in LAYOUT:
        raise ValueError(f"a scene has 1 to {max(LAYOUT)} items, not {len(items)}: {items}")
    for name in items:
        pictogram(name, LAYOUT[len(items)][0])
    if caption:
        _caption_lines(caption)
    return scene


def _frames(shot: dict) -> int:
    count = shot["seconds"] * FPS
    if count <= 0 or count % (FPS // 2):
        raise ValueError(f"a shot of {shot['seconds']} s; allowed: multiples of 0.5 s, above 0")
    return int(count)


def _animate(shot: dict, scene: np.ndarray) -> Iterator[np.ndarray]:
    items, motion, count = shot["items"], shot.get("motion", "still"), _frames(shot)
    size, step, stagger = LAYOUT[len(items)]
    for number in range(count):
        frame = scene.copy()
        alpha = DIMMED if motion == "blink" and number % 6 >= 4 else 255
        for index, name in enumerate(items):
            x = (WIDTH + (2 * index - len(items) + 1) * step) // 2
            y = MIDDLE + (stagger if index % 2 else -stagger)
            dx, dy = _offset(motion, number, count, index, x - WIDTH // 2)
            _paste(frame, *pictogram(name, size), x + dx - size // 2, y + dy - size // 2, alpha)
        if shot.get("caption"):
            _draw_caption(frame, shot["caption"])
        yield frame


def _offset(motion: str, number: int, count: int, index: int, from_middle: int) -> tuple[int, int]:
    """Where an item is in frame `number` of `count`, relative to its place, in pixels; `from_middle` is its place's signed distance."""
    last = max(count - 1, 1)
    if motion == "drift":
        return 48 * number // last - 24, 6 * SINE[(number + 4 * index) % 16] // 256
    if motion == "bounce":
        return 0, -(34 * abs(SINE[(number + 3 * index) % 16]) // 256)
    if motion == "shake":
        return SHAKE[(number + 3 * index) % len(SHAKE)]
    if motion == "approach":  # from 110 to 70 in 100 of the distance; an item alone comes in from the left
        if from_middle == 0:
            return (0, 0) if index else (120 * number // last - 120, 0)
        return from_middle * (110 * last - 40 * number) // (100 * last) - from_middle, 0
    if motion == "circle":
        phase = number + 5 * index
        return 24 * SINE[(phase + 4) % 16] // 256, 24 * SINE[phase % 16] // 256
    if motion == "rise":
        return 0, 72 - 96 * number // last
    return 0, 0


def _paste(frame: np.ndarray, colour: np.ndarray, cover: np.ndarray, x: int, y: int, alpha: int = 255) -> None:
    """Blends a picture into the frame, in place; colour is already times cover; parts outside the frame are left out."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + colour.shape[1], WIDTH), min(y + colour.shape[0], HEIGHT)
    place = frame[top:bottom, left:right]
    inner = (slice(top - y, bottom - y), slice(left - x, right - x))
    over, share = colour[inner], cover[inner]
    if alpha < 255:
        over, share = (over.astype(np.uint16) * alpha // 255).astype(np.uint8), (share.astype(np.uint16) * alpha + 254) // 255
    place[...] = over + _divide_255(place * (255 - share.astype(np.uint16)))


def _divide_255(product: np.ndarray) -> np.ndarray:
    return ((product + 127) // 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _line(text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    mask = text_mask(text, size)
    return np.repeat(mask[:, :, None], 3, axis=2), mask[:, :, None]


def _write_lines(frame: np.ndarray, lines: list[str], size: int, top: int) -> None:
    """Lines of white text, each centred."""
    for number, text in enumerate(lines):
        _paste(frame, *_line(text, size), (WIDTH - text_width(text, size)) // 2 - PAD, top + number * line_height(size))


def _caption_lines(caption: str) -> list[str]:
    """The caption as it is, or in two lines at the space that makes the longer one shortest."""
    if text_width(caption, CAPTION_SIZE) <= CAPTION_WIDTH:
        return [caption]
    words = caption.split()
    pairs = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    longest, best = min(((max(text_width(line, CAPTION_SIZE) for line in pair), pair) for pair in pairs), default=(WIDTH, ()))
    if longest > CAPTION_WIDTH:
        raise ValueError(f"caption {caption!r} does not fit; allowed: {CAPTION_LINES} lines of {CAPTION_WIDTH} pixels")
    return list(best)


def _strip_height(caption: str | None) -> int:
    return len(_caption_lines(caption)) * line_height(CAPTION_SIZE) + 8 if caption else 0


def _draw_caption(frame: np.ndarray, caption: str) -> None:
    lines, height = _caption_lines(caption), _strip_height(caption)
    strip = frame[HEIGHT - height :]
    strip[...] = _divide_255(strip.astype(np.uint16) * (255 - STRIP_ALPHA))
    _write_lines(frame, lines, CAPTION_SIZE, HEIGHT - height + 5)


def _draw_card(frame: np.ndarray, card: str, background_name: str, bottom: int) -> None:
    """A coloured card with centred text over the part of the frame above `bottom`."""
    lines = card.split("\n")
    for line in lines:
        check_text(line)
    space = bottom - 2 * (CARD_MARGIN + CARD_BORDER) - 8
    fitting = [s for s in CARD_SIZES if max(text_width(t, s) for t in lines) <= CARD_WIDTH and len(lines) * line_height(s) <= space]
    if len(lines) > CARD_LINES or not fitting:
        raise ValueError(f"card {card!r} does not fit; allowed: {CARD_LINES} lines of {CARD_WIDTH} pixels at size {min(CARD_SIZES)}")
    frame[CARD_MARGIN : bottom - CARD_MARGIN, CARD_MARGIN : WIDTH - CARD_MARGIN] = WHITE
    edge = CARD_MARGIN + CARD_BORDER
    frame[edge : bottom - edge, edge : WIDTH - edge] = card_colour(background_name)
    size = fitting[0]
    _write_lines(frame, lines, size, (bottom - len(lines) * line_height(size)) // 2)
