"""Shots that hardly move are turned away; the others get a fingerprint of 256 bits, by which near-duplicates are found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

from videosafety.dataset_builder.config import Config
from videosafety.dataset_builder.rows import Outcome, Rejected, Row, Stage, said
from videosafety.lmms_eval_tasks.video import MediaError, Sampling, decode

BITS = 256
_GREY = 32  # side of the grey picture that is compared and transformed
_LOW = 8  # lowest frequencies of each axis that make the hash: 64 bits, as in pHash
_FRAMES = 4  # of a shot, spread evenly
_LOOK = Sampling(fps=4.0, max_frames=64, max_pixels=128 * 128)


def grey(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] as float64 [T, 32, 32] in [0, 255]."""
    return np.stack([np.asarray(Image.fromarray(f).convert("L").resize((_GREY, _GREY), Image.Resampling.BOX)) for f in frames]).astype(
        np.float64
    )


def motion(pictures: np.ndarray) -> float:
    """Mean absolute change from one frame to the next, as a share of the full range, in [0, 1]; 0 for one frame."""
    return float(np.abs(np.diff(pictures, axis=0)).mean() / 255) if len(pictures) > 1 else 0.0


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    n = np.arange(_GREY)
    return np.cos(np.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * _GREY))[:_LOW]


def perceptual_hash(pictures: np.ndarray) -> np.ndarray:
    """256 bits, uint8 [32]: of four pictures spread evenly, which of the 64 lowest DCT frequencies lie above their median (pHash)."""
    chosen = pictures[[round(i * (len(pictures) - 1) / (_FRAMES - 1)) for i in range(_FRAMES)]]
    low = np.einsum("uy,tyx,vx->tuv", _cosines(), chosen, _cosines()).reshape(_FRAMES, -1)
    low[:, 0] = 0.0  # the mean: brightness is no content
    return np.packbits(low > np.median(low, axis=1, keepdims=True))


def measure(config: Config) -> Stage:
    """Stage: motion and fingerprint of a shot, by DINOv2 features where their weights are given; near-still shots are turned away."""
    settings = config.filter
    features = None
    if settings.features is not None:
        from videosafety.dataset_builder.features import Features

        features = Features(config.root / settings.features)

    def stage(row: Row) -> Iterator[Outcome]:
        try:
            frames = decode(row["file"], _LOOK).frames
        except MediaError as error:
            raise Rejected(str(error).replace(row["file"], "the clip")) from error
        pictures = grey(frames)
        moved = motion(pictures)
        if moved < settings.min_motion:
            raise Rejected(f"nearly still: {moved:.5f} of the range changes from frame to frame, {settings.min_motion:g} wanted")
        bits = perceptual_hash(pictures) if features is None else features.fingerprint(frames)
        by = "phash" if features is None else features.name
        yield said(row, motion=round(moved, 5), fingerprint=bits.tobytes().hex(), fingerprint_by=by)

    return stage


def clusters(fingerprints: np.ndarray, most: int, bands: int = 16) -> np.ndarray:
    """For each of n fingerprints, uint8 [n, 32], the index of the first of its near-duplicates (its own where there is none), int64 [n].

    Two are near-duplicates where at most `most` of 256 bits differ; the relation is closed under chains. Only pairs that agree in one of
    `bands` bands are compared: certain below `bands` bits; at 24 bits spread by chance it finds 99 in 100
    pairs, at 48 bits 43 (`stats.recall`).
    """
    if not len(fingerprints):
        return np.zeros(0, np.int64)
    distinct, first, which = np.unique(fingerprints, axis=0, return_index=True, return_inverse=True)  # a thousand black clips are one
    parent = np.arange(len(distinct))
    words = np.ascontiguousarray(distinct).view(np.uint64)
    width = distinct.shape[1] // bands
    for band in range(bands):
        keys = np.ascontiguousarray(distinct[:, band * width : (band + 1) * width]).view(f"V{width}").ravel()
        order = np.argsort(keys, kind="stable")
        keys, left, step = keys[order], np.arange(len(order)), 0
        while len(left):  # each with the next, the next but one … that has the same band
            step += 1
            left = left[left + step < len(order)]
            left = left[keys[left] == keys[left + step]]
            a, b = order[left], order[left + step]
            near = np.bitwise_count(words[a] ^ words[b]).sum(1) <= most
            for i, j in zip(a[near].tolist(), b[near].tolist(), strict=True):
                _join(parent, i, j)
    roots = np.array([_root(parent, i) for i in range(len(distinct))])
    leader = np.full(len(distinct), len(fingerprints))
    np.minimum.at(leader, roots, first)
    return leader[roots][which.ravel()].astype(np.int64)


def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _join(parent: np.ndarray, a: int, b: int) -> None:
    a, b = _root(parent, a), _root(parent, b)
    parent[max(a, b)] = min(a, b)
