"""Pictograms and backgrounds: reads pictograms.yml and turns its shapes into pixels, the same on every machine.

Coverage is exact anti-aliasing from signed distances, computed in float64 with + - * / and sqrt only (each correctly rounded by IEEE 754,
so no library version can change a pixel) and rounded to integers once, at the end.
"""

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml

WIDTH, HEIGHT = 448, 336  # pixels of a frame
STICKER = 3.0  # white rim around a pictogram, in units: keeps it readable on any background
MARGIN = 3.0  # units kept free on each side of the 100 x 100 of a pictogram, for the rim
NUMBERS = {  # how many numbers each kind of shape takes after its colour; None: as many as there are points
    "disc": 3,  # x y radius
    "ring": 4,  # x y outer-radius stroke
    "half": 4,  # x y radius side: half a disc; side 0 top, 1 right, 2 bottom, 3 left
    "arc": 5,  # x y outer-radius stroke side: half a ring
    "box": 4,  # x0 y0 x1 y1
    "rbox": 5,  # x0 y0 x1 y1 corner-radius
    "seg": 5,  # x0 y0 x1 y1 width: a stroke with round ends
    "bar": 5,  # x0 y0 x1 y1 width: a stroke with square ends
    "loop": 6,  # x0 y0 x1 y1 outer-width stroke: the outline of a seg
    "lens": 5,  # x0 y0 x1 y1 width: a leaf from one point to the other
    "poly": None,  # x y x y x y ...
    "line": None,  # width x y x y ...: strokes with round ends
}


@lru_cache(maxsize=1)
def _library() -> dict:
    """The file with every shape parsed to (kind, colour or None, numbers): keys colours, pictograms, backgrounds, cards."""
    raw = yaml.safe_load((Path(__file__).parent / "pictograms.yml").read_text(encoding="utf-8"))
    colours = {name: tuple(bytes.fromhex(code)) for name, code in raw["colours"].items()}
    library: dict = {"colours": colours, "cards": {name: colours[colour] for name, colour in raw["cards"].items()}}
    for section in ("pictograms", "backgrounds"):
        library[section] = {name: [_parse(name, shape, colours) for shape in shapes] for name, shapes in raw[section].items()}
    return library


def _parse(name: str, shape: str, colours: dict) -> tuple:
    kind, colour, *numbers = shape.split()
    values = tuple(float(number) for number in numbers)
    wanted = NUMBERS[kind]
    if len(values) != wanted if wanted else len(values) < 5 or len(values) % 2 != (kind == "line"):
        raise ValueError(f"pictograms.yml, {name}: {shape!r} has {len(values)} numbers, {kind} takes {wanted or 'points'}")
    return kind, None if colour == "cut" else colours[colour], values


def names(section: str) -> tuple[str, ...]:
    """What there is to draw; section: "pictograms" or "backgrounds"."""
    return tuple(_library()[section])


def _known(name: str, section: str) -> None:
    if name not in _library()[section]:
        raise ValueError(f"unknown {section[:-1]} {name!r}; allowed: {' '.join(names(section))}")


def card_colour(background: str) -> tuple[int, int, int]:
    """RGB of a card on this background. It follows the background alone, so no colour tells a harmful card from a safe one."""
    _known(background, "backgrounds")
    return _library()["cards"][background]


@lru_cache(maxsize=256)
def pictogram(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One pictogram with its white rim, `size` pixels square.

    Returns colour times coverage, uint8 (size, size, 3), and coverage, uint8 (size, size, 1); both read-only.
    Raises ValueError for a name that pictograms.yml lacks.
    """
    _known(name, "pictograms")
    return rasterise(_library()["pictograms"][name], size, size, size / (100 + 2 * MARGIN), MARGIN, STICKER)


@lru_cache(maxsize=16)
def background(name: str) -> np.ndarray:
    """One background, uint8 (HEIGHT, WIDTH, 3), read-only. Raises ValueError for a name that pictograms.yml lacks."""
    _known(name, "backgrounds")
    return rasterise(_library()["backgrounds"][name], WIDTH, HEIGHT, 1.0)[0]


def rasterise(
    shapes: list[tuple], width: int, height: int, scale: float, margin: float = 0.0, rim: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws shapes over each other; `scale` is pixels per unit, the top left corner lies at (-margin, -margin) units,
    and `rim` is the width in units of a white rim under all of them.

    Returns colour times coverage, uint8 (height, width, 3), and coverage, uint8 (height, width, 1); both read-only.
    """
    x = (np.arange(width) + 0.5)[None, :] / scale - margin
    y = (np.arange(height) + 0.5)[:, None] / scale - margin
    distances = [_distance(kind, values, x, y) * scale for kind, _, values in shapes]
    under = np.zeros((height, width, 1))
    if rim:
        union = np.full((height, width), 1e9)
        for (_, tint, _), distance in zip(shapes, distances, strict=True):
            union = np.minimum(union, distance) if tint else np.maximum(union, -distance)
        under = _coverage(union - rim * scale)
    colour, alpha = np.repeat(under * 255, 3, axis=2), under
    for (_, tint, _), distance in zip(shapes, distances, strict=True):
        cover = _coverage(distance)
        top, top_alpha = (np.array(tint, float), 1.0) if tint else (under * 255, under)  # a cut goes down to the rim
        colour = colour * (1 - cover) + top * cover
        alpha = alpha * (1 - cover) + top_alpha * cover
    result = np.floor(colour + 0.5).astype(np.uint8), np.floor(alpha * 255 + 0.5).astype(np.uint8)
    for array in result:
        array.flags.writeable = False
    return result


def _coverage(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance, 0, 1)[:, :, None]


def _distance(kind: str, v: tuple, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance in units from every point to a shape's edge, negative inside; x (1, w), y (h, 1) -> (h, w)."""
    if kind == "disc":
        return _length(x - v[0], y - v[1]) - v[2]
    if kind == "half":
        return np.maximum(_length(x - v[0], y - v[1]) - v[2], _beyond(v, x, y))
    if kind in ("ring", "arc"):
        ring = np.abs(_length(x - v[0], y - v[1]) - v[2] + v[3] / 2) - v[3] / 2
        return ring if kind == "ring" else np.maximum(ring, _beyond(v, x, y))
    if kind in ("box", "rbox"):
        return _box(x - (v[0] + v[2]) / 2, y - (v[1] + v[3]) / 2, (v[2] - v[0]) / 2, (v[3] - v[1]) / 2, v[4] if kind == "rbox" else 0.0)
    if kind == "seg":
        return _stroke(v, x, y) - v[4] / 2
    if kind == "loop":
        return np.abs(_stroke(v, x, y) - v[4] / 2 + v[5] / 2) - v[5] / 2
    if kind in ("bar", "lens"):
        dx, dy = v[2] - v[0], v[3] - v[1]
        length = float(np.sqrt(dx * dx + dy * dy))
        px, py = x - (v[0] + v[2]) / 2, y - (v[1] + v[3]) / 2
        along, across = (px * dx + py * dy) / length, (py * dx - px * dy) / length
        if kind == "bar":
            return _box(along, across, length / 2, v[4] / 2, 0.0)
        radius = (length * length / 4 + v[4] * v[4] / 4) / v[4]  # of the two circles whose overlap is the lens
        return _length(along, np.abs(across) + radius - v[4] / 2) - radius
    if kind == "line":
        points = list(zip(v[1::2], v[2::2], strict=True))
        return np.minimum.reduce([_stroke((*a, *b), x, y) for a, b in pairwise(points)]) - v[0] / 2
    return _polygon(list(zip(v[::2], v[1::2], strict=True)), x, y)


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)


def _beyond(v: tuple, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far a point lies on the wrong side of the line that halves a disc or ring; v ends with the side that is kept."""
    return (y - v[1], v[0] - x, v[1] - y, x - v[0])[int(v[-1])]


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, radius: float) -> np.ndarray:
    qx, qy = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    return _length(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - radius


def _stroke(v: tuple, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unsigned distance to the straight line between two points."""
    dx, dy = v[2] - v[0], v[3] - v[1]
    px, py = x - v[0], y - v[1]
    share = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    return _length(px - share * dx, py - share * dy)


def _polygon(points: list[tuple], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    nearest = np.full((y.shape[0], x.shape[1]), 1e9)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        nearest = np.minimum(nearest, _stroke((ax, ay, bx, by), x, y))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return np.where(inside, -nearest, nearest)
