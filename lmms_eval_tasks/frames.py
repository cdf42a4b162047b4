"""Frames and images as they come out of a decoder: upright, within the pixel budget, in one array within the memory allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import ExifTags, Image

MAX_FRAME_PIXELS = 8192 * 4320
MAX_CLIP_BYTES = 2 << 30
EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class MediaError(Exception):
    """A media file that cannot be shown to the model. The message is one line that a user can act on."""


class Frames:
    """The sampled frames of one video as they come, in one array that is made once and stays within the memory allowed."""

    def __init__(self, file: Path, indices: Sequence[int], max_pixels: int | None) -> None:
        self.file, self.indices, self.max_pixels = file, list(indices), max_pixels
        self.missing = set(indices)
        self._place = {index: place for place, index in enumerate(indices)}
        self._array: np.ndarray | None = None

    def room(self, height: int, width: int) -> None:
        """Raises MediaError where frames of this size, before scaling, are too large or too many."""
        if height * width > MAX_FRAME_PIXELS:
            raise MediaError(f"{self.file}: {width}x{height} is over the limit of {MAX_FRAME_PIXELS} pixels a frame")
        height, width = fitted(height, width, self.max_pixels)
        if (size := len(self.indices) * height * width * 3) > MAX_CLIP_BYTES:
            raise MediaError(
                f"{self.file}: {len(self.indices)} frames of {width}x{height} take {size / 2**30:.1f} GiB, over the limit of "
                f"{MAX_CLIP_BYTES / 2**30:.1f} GiB; set max_pixels, or a lower max_frames"
            )

    def add(self, index: int, frame: np.ndarray) -> None:
        """Put in one frame, uint8 [H, W, 3]; scaled down to the pixel budget. Raises MediaError where it is not as large as the first."""
        self.room(*frame.shape[:2])
        frame = fit(frame, self.max_pixels)
        if self._array is None:
            self._array = np.empty((len(self.indices), *frame.shape), np.uint8)
        if frame.shape != self._array.shape[1:]:
            raise MediaError(f"{self.file}: its frames are not of one size; encode it anew")
        self._array[self._place[index]] = frame
        self.missing.discard(index)

    def whole(self) -> np.ndarray:
        """All frames, uint8 [T, H, W, 3]. Raises MediaError where some are missing."""
        if self._array is None or self.missing:
            found = len(self.indices) - len(self.missing)
            raise MediaError(f"{self.file}: truncated, only {found} of {len(self.indices)} sampled frames could be decoded")
        return self._array


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """How the file wants the frame turned or mirrored: the 2 x 2 part of its display matrix, the identity where it has none."""
    stored: Any = frame.side_data.get("DISPLAYMATRIX")
    return np.eye(2) if stored is None else np.frombuffer(stored, np.int32).reshape(3, 3)[:2, :2]


def upright(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The frame [H, W, 3] as a player shows it, after quarter turns and mirrorings: (x, y) of a pixel goes to (x, y) @ matrix."""
    if abs(matrix[0, 1]) > abs(matrix[0, 0]):
        frame, matrix = frame.transpose(1, 0, 2), matrix[::-1]
    if matrix[0, 0] < 0:
        frame = frame[:, ::-1]
    if matrix[1, 1] < 0:
        frame = frame[::-1]
    return frame


def is_upright(matrix: np.ndarray) -> bool:
    """Whether `upright` leaves frames as they are."""
    return bool(matrix[0, 0] > abs(matrix[0, 1]) and matrix[1, 1] > 0)


def exif_upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says. Pillow's own function writes the EXIF anew and fails, with any exception, on damaged entries."""
    turn = EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def fitted(height: int, width: int, max_pixels: int | None) -> tuple[int, int]:
    """(height, width) of a frame scaled down, aspect kept, to at most `max_pixels` pixels."""
    if max_pixels is None or height * width <= max_pixels:
        return height, width
    scale = (max_pixels / (height * width)) ** 0.5
    return max(1, int(height * scale)), max(1, int(width * scale))


def fit(frame: np.ndarray, max_pixels: int | None) -> np.ndarray:
    """The frame, uint8 [H, W, 3], scaled down (bicubic, aspect kept) to at most `max_pixels` pixels."""
    height, width = fitted(frame.shape[0], frame.shape[1], max_pixels)
    if (height, width) == frame.shape[:2]:
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
