"""Draws the toy world's clips: three frames of 56 by 56 pixels from bitmaps of 10 by 10, the same on every machine."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

from videosafety.lmms_eval_tasks.toy_world.world import Clip

SIDE, FRAMES, SCALE = 56, 3, 2  # pixels, frames (one a second), pixels of a bitmap's dot
STEP = 14  # pixels from frame to frame
APART = 15  # pixels from the middle, of each of two
RGB = {
    "red": (230, 40, 40), "blue": (60, 110, 255), "green": (40, 200, 60), "yellow": (240, 220, 40), "white": (245, 245, 245),
    "pink": (250, 110, 200), "black": (8, 8, 8), "navy": (12, 20, 70), "brown": (70, 40, 16),
}  # fmt: skip
MOVES = {"left": (-STEP, 0), "right": (STEP, 0), "up": (0, -STEP), "down": (0, STEP), "still": (0, 0)}
BITMAPS = {
    "ball": "...####... .########. .########. ########## ########## ########## ########## .########. .########. ...####...",
    "box": "########## #........# #.######.# #.#....#.# #.#....#.# #.#....#.# #.#....#.# #.######.# #........# ##########",
    "cross": "##......## ###....### .###..###. ..######.. ...####... ...####... ..######.. .###..###. ###....### ##......##",
    "ring": "...####... .########. .##....##. ##......## ##......## ##......## ##......## .##....##. .########. ...####...",
    "tree": "....##.... ...####... ..######.. .########. ########## ..######.. .########. ########## ....##.... ....##....",
    "star": "....##.... ....##.... #...##...# .#.####.#. ..######.. ########## ..######.. .#.####.#. #...##...# ....##....",
    "bomb": ".......##. ......#..# .....#.... ..#####... .#######.. #########. #########. #########. .#######.. ..#####...",
    "blade": "#......... ##........ ###....... .###...... ..###..... ...###...# ....###.## .....####. ......###. .....##.##",
    "flame": "..#....... ..##...#.. .###...##. .####.###. ####.##### ##########  ###....### ##......## .##....##. ..######..",
}


def bitmap(shape: str) -> np.ndarray:
    """A shape's dots, bool (20, 20) pixels."""
    rows = BITMAPS[shape].split()
    return np.array([[dot == "#" for dot in row] for row in rows]).repeat(SCALE, 0).repeat(SCALE, 1)


def frames(clip: Clip) -> np.ndarray:
    """uint8 (3, 56, 56, 3), RGB. Two copies stand beside each other across their motion."""
    out = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    out[:] = RGB[clip.ground]
    dots = bitmap(clip.shape)
    (dx, dy), sideways = MOVES[clip.motion], clip.motion in ("left", "right")
    for n, frame in enumerate(out):
        for apart in (0,) if clip.count == "one" else (-APART, APART):
            x = SIDE // 2 + dx * (n - 1) + (0 if sideways else apart) - dots.shape[1] // 2
            y = SIDE // 2 + dy * (n - 1) + (apart if sideways else 0) - dots.shape[0] // 2
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + dots.shape[1], SIDE), min(y + dots.shape[0], SIDE)
            frame[top:bottom, left:right][dots[top - y : bottom - y, left - x : right - x]] = RGB[clip.colour]
    return out


def write(clip: Clip, path: Path) -> None:
    """The clip as a lossless mp4, one frame a second; the file appears only when complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        draft = Path(folder) / "clip.mp4"
        with av.open(str(draft), "w") as container:
            options = {"preset": "ultrafast", "qp": "0", "bf": "0"}  # exact pixels
            stream = cast(av.VideoStream, container.add_stream("libx264rgb", rate=1, options=options))
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "rgb24"
            stream.codec_context.thread_count = 1
            for number, pixels in enumerate(frames(clip)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 1)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        draft.replace(path)
