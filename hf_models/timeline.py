"""Where in a video the harm is: an alarm model's scores of overlapping segments, from one decode, pooled and drawn.

A tool beside the published model files, not one of them: media are decoded by `lmms_eval_tasks`, the code that evaluation uses (imported
where it is needed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videosafety.hf_models.guard import NO_TOKEN, Guard

if TYPE_CHECKING:
    from videosafety.lmms_eval_tasks.halving import Halving
    from videosafety.lmms_eval_tasks.video import Clip

MAX_FRAMES = 3600  # an hour at one frame a second; longer videos are sampled more thinly
MAX_PIXELS = 448 * 448  # a frame; 3600 of them take 2.2 GB
PEAKS = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """`start` and `end` in seconds, `end` excluded; p(harmful) of what it shows in [0, 1], or None with the reason in `error`."""

    start: float
    end: float
    p_visual: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """A video's segments, ascending by start. `frames`: how many frames were decoded, once, for all of them."""

    video: str
    text: str
    window: float
    stride: float
    duration: float
    frames: int
    segments: tuple[Segment, ...]

    @property
    def maximum(self) -> float | None:
        """The highest segment's probability: is there harm anywhere? Grows with the number of segments. None where none has one."""
        return max((s.p_visual for s in self.segments if s.p_visual is not None), default=None)

    @property
    def mean(self) -> float | None:
        """The segments' mean probability: how much of the video is harmful? None where none has one."""
        known = [s.p_visual for s in self.segments if s.p_visual is not None]
        return sum(known) / len(known) if known else None

    @property
    def peaks(self) -> list[int]:
        """Indices of at most PEAKS highest segments that do not overlap, highest first."""
        found: list[int] = []
        known = [i for i, s in enumerate(self.segments) if s.p_visual is not None]
        for i in sorted(known, key=lambda i: (-(self.segments[i].p_visual or 0.0), i)):
            here = self.segments[i]
            if len(found) < PEAKS and all(here.end <= self.segments[j].start or self.segments[j].end <= here.start for j in found):
                found.append(i)
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"p_visual_max": self.maximum, "p_visual_mean": self.mean, "peaks": self.peaks}


def timeline(
    guard: Guard, video: Path, text: str = "", window: float = 8.0, stride: float = 4.0, batch_size: int = 8
) -> tuple[Scores, Clip]:
    """Score a video segment by segment; also the decoded clip, for the plot.

    The frames are those of `guard.sampling`; every segment has those that begin in [start, start + window), or where none does the one on
    screen. The last one ends with the video.

    Args:
        text: what is asked about each segment. The visual token stands before it and does not see it; only rounding may differ.
        window, stride: seconds, stride at most window, so that no moment is left out.

    Raises:
        ValueError: window or stride out of range, or a window too short to have a frame at this sampling.
        MediaError: the video cannot be decoded: then there is no score at all, not even of a part.
    """
    from videosafety.lmms_eval_tasks.halving import Halving
    from videosafety.lmms_eval_tasks.video import decode

    if not (math.isfinite(window) and 0 < stride <= window):
        raise ValueError(f"stride must be above 0 and at most the window, got stride {stride} and window {window}")
    clip = decode(video, guard.sampling)
    spans = segments(clip.seconds, clip.duration, window, stride, max(1 / guard.sampling.fps, clip.duration / guard.sampling.max_frames))
    found: list[Segment] = []
    memory = Halving(batch_size)
    for i in range(0, len(spans), batch_size):
        found += _scored(guard, clip, spans[i : i + batch_size], text, memory)
    return Scores(str(video), text, window, stride, clip.duration, len(clip.frames), tuple(found)), clip


def segments(seconds: Sequence[float], duration: float, window: float, stride: float, step: float) -> list[tuple[float, float, range]]:
    """(start, end, indices of frames) of each segment; a video shorter than the window is one segment.

    A segment in which no frame begins has the one that is on screen at its start: a slide or a still recording stays for long.

    Args:
        seconds: when each sampled frame begins, from 0 on, ascending. step: seconds between two looks at the video.

    Raises:
        ValueError: some segment has no frame since nobody looked: the window is shorter than the step.
    """
    count = 1 + max(0, math.ceil((duration - window) / stride - 1e-9))
    found = []
    for n in range(count):
        # The last one is moved back to end with the video: a stub of one frame would be judged by too little.
        start = 0.0 if n == 0 else min(n * stride, max(0.0, duration - window))
        end = min(start + window, duration) if duration > 0 else window
        inside = range(int(np.searchsorted(seconds, start - 1e-6)), int(np.searchsorted(seconds, start + window - 1e-6)))
        if not inside and window < step - 1e-6:
            raise ValueError(
                f"no frame between {start:.2f} s and {end:.2f} s: the video is looked at every {step:.2f} s; choose a window of that length"
                " or more, more frames a second, or more frames"
            )
        found.append((start, end, inside or range(inside.start - 1, inside.start)))
    return found


def _scored(guard: Guard, clip: Clip, spans: Sequence[tuple[float, float, range]], text: str, memory: Halving) -> list[Segment]:
    """Segments with their probabilities; where the processor refuses a batch, each alone, so that one cannot take others along."""
    from videosafety.lmms_eval_tasks.pipeline import Loaded, Request

    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
    loaded = []
    for n, (start, end, inside) in enumerate(spans):
        part = slice(inside.start, inside.stop)
        # Time starts anew in each segment: models read positions in a video, and a segment is judged as a video of its own.
        seconds = [s - clip.seconds[inside.start] for s in clip.seconds[part]]
        indices = [i - clip.indices[inside.start] for i in clip.indices[part]]
        total = max(1, round((end - start) * clip.fps), indices[-1] + 1)
        piece = replace(clip, frames=clip.frames[part], indices=indices, seconds=seconds, total=total, duration=end - start)
        loaded.append(Loaded(Request(n, str(n), [message], [str(n)], [], {}), [piece]))
    try:
        judged, lost = memory.run(loaded, None, lambda part, _: guard.probabilities(part)[:, 0].tolist())
    except ValueError as error:
        if len(spans) == 1:
            return [Segment(spans[0][0], spans[0][1], None, f"the processor refused it: {' '.join(str(error).split())}")]
        return [segment for span in spans for segment in _scored(guard, clip, [span], text, memory)]
    known: dict[int, tuple[float | None, str | None]] = {request.index: (None, NO_TOKEN) if p != p else (p, None) for request, p in judged}
    known |= {request.index: (None, message) for request, message in lost}
    return [Segment(start, end, *known[n]) for n, (start, end, _) in enumerate(spans)]


def plot(scores: Scores, clip: Clip, threshold: float | None = None, title: str | None = None) -> Any:
    """A matplotlib Figure: probability over time, and below it the frames in the middle of the highest segments.

    Args:
        threshold: drawn as a line; of raw probabilities, in [0, 1].
    """
    from matplotlib.figure import Figure

    peaks = sorted(scores.peaks)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, max(1, len(peaks)), height_ratios=(3, 2))
    curve = figure.add_subplot(grid[0, :])
    middles = [(s.start + s.end) / 2 for s in scores.segments]
    curve.plot(
        middles, [math.nan if s.p_visual is None else s.p_visual for s in scores.segments], marker="o", markersize=3, color="#1f4e79"
    )
    for segment in scores.segments:
        if segment.p_visual is None:
            curve.axvspan(segment.start, segment.end, color="#bbbbbb", alpha=0.5, linewidth=0)
    if threshold is not None:
        curve.axhline(threshold, color="#b03030", linestyle="--", linewidth=1)
        curve.annotate(
            f"threshold {threshold:.2f}", (1, threshold), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    curve.set(xlim=(0, max(scores.duration, scores.segments[-1].end)), ylim=(-0.02, 1.02), xlabel="seconds", ylabel="p(harmful), visual")
    pooled = ", ".join(f"{name} {_words(value)}" for name, value in (("max", scores.maximum), ("mean", scores.mean)))
    curve.set_title(f"{title or Path(scores.video).name}: {pooled}; segments of {scores.window:g} s every {scores.stride:g} s", fontsize=10)
    for place, i in enumerate(peaks):
        picture, middle = figure.add_subplot(grid[1, place]), middles[i]
        frame = int(np.argmin([abs(s - middle) for s in clip.seconds]))
        picture.imshow(clip.frames[frame])
        picture.set_axis_off()
        picture.set_title(f"{clip.seconds[frame]:.1f} s, p = {_words(scores.segments[i].p_visual)}", fontsize=9)
    if not peaks:
        figure.add_subplot(grid[1, 0]).set_axis_off()
    return figure


def _words(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
