"""A video becomes its shots: seen through evaluation's own frames code, cut where the colours change, written as files of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videosafety.dataset_builder.config import Config, Shots
from videosafety.dataset_builder.rows import Outcome, Rejected, Rejection, Row, Stage, digest, said
from videosafety.lmms_eval_tasks.frames import display_matrix, is_upright, upright
from videosafety.lmms_eval_tasks.video import OPEN_OPTIONS, MediaError, Sampling, checked_file, content_hash, decode, fit, read_timeline

LOOK_PIXELS = 64 * 64  # a frame while cuts are looked for: colours survive that
MAX_LOOKED_AT = 5_000  # frames of one video, 60 MB
NO_INDEX = ("mpegts", "mpeg")  # a seek in these may land behind the key frame that is wanted: they are read from the start
_BINS = 8  # of each colour channel
_TICKS = 12_800  # time base of what is written: common for MP4, divides 25, 50 and 100 frames a second, and 30 to within 0.3 ms
_PEAK = 3.0  # a cut changes so many times more than its neighbourhood: fast motion is no cut
# Visually near lossless. One thread and no assembler: with either, x264 8-bit gave other bytes for the same frames (measured here).
ENCODER = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}


def inspect(config: Config) -> Stage:
    """Stage: the file's content hash, its length, and whether it is within the limits."""

    def stage(row: Row) -> Iterator[Outcome]:
        try:
            file = checked_file(row["file"])
            if file.stat().st_size > config.limits.max_bytes:
                raise Rejected(f"{file.stat().st_size:,} bytes are over the limit of {config.limits.max_bytes:,}")
            seconds = read_timeline(file).duration
            if seconds > config.limits.max_seconds:
                raise Rejected(f"{seconds:.0f} s are over the limit of {config.limits.max_seconds:.0f} s")
            yield said(row, sha256=content_hash(file)) | {"duration": seconds}
        except MediaError as error:
            raise Rejected(without_folder(str(error), row["file"])) from error

    return stage


def without_folder(text: str, file: str) -> str:
    """`text` with a file's name in place of its path: a report must not tell where things lie."""
    return text.replace(str(Path(file).resolve()), Path(file).name).replace(file, Path(file).name)


def cuts(frames: np.ndarray, threshold: float) -> list[int]:
    """Indices of frames that begin a new shot; never 0.

    frames: uint8 [T, H, W, 3]. A cut is where the share of colour mass that moved (half the L1 distance of 3 x 8-bin histograms, in
    [0, 1]) is above `threshold`, and _PEAK times that of the three steps to either side.
    """
    levels = frames.reshape(len(frames), -1, 3) >> 5
    histograms = np.stack([np.stack([np.bincount(frame[:, c], minlength=_BINS) for c in range(3)]) for frame in levels]).astype(np.float64)
    histograms /= histograms.sum(2, keepdims=True)
    moved = 0.5 * np.abs(np.diff(histograms, axis=0)).sum(2).mean(1)
    found = []
    for i, change in enumerate(moved):
        around = np.concatenate([moved[max(0, i - 3) : i], moved[i + 1 : i + 4]])
        if change > threshold and (not len(around) or change > _PEAK * np.median(around)):
            found.append(i + 1)
    return found


def pieces(start: float, end: float, longest: float) -> list[tuple[float, float]]:
    """[start, end) as the fewest equal parts that are no longer than `longest` seconds."""
    parts = max(1, int(np.ceil((end - start) / longest - 1e-9)))
    step = (end - start) / parts
    return [(start + i * step, start + (i + 1) * step) for i in range(parts)]


def bounds(seconds: list[float], at: list[int], duration: float, settings: Shots) -> list[tuple[float, float]]:
    """Start and end of each shot. Between the last frame before a cut and the first after it nobody looked: that gap is in no shot."""
    firsts = [0, *at]
    lasts = [i - 1 for i in at]
    ends = [seconds[i] for i in lasts] + [duration]
    return [piece for first, end in zip(firsts, ends, strict=True) for piece in pieces(seconds[first], end, settings.max_seconds)]


def shots(config: Config) -> Stage:
    """Stage: one row a shot, each with a clip of its own in the work folder and an `id` made of content and place."""
    settings = config.shots
    folder = config.work / "clips"

    def stage(row: Row) -> Iterator[Outcome]:
        file, name = Path(row["file"]), row["id"]
        try:
            looked_at = decode(file, Sampling(settings.fps, MAX_LOOKED_AT, LOOK_PIXELS))
        except MediaError as error:
            raise Rejected(without_folder(str(error), row["file"])) from error
        at = cuts(looked_at.frames, settings.threshold)
        for start, end in bounds(looked_at.seconds, at, looked_at.duration, settings):
            place = f"{start:.2f}-{end:.2f} s"
            if end - start < settings.min_seconds:
                yield Rejection(name, f"a shot of {end - start:.2f} s is under the {settings.min_seconds:g} s wanted", what=place)
                continue
            identity = digest(row["provenance"]["sha256"], round(start, 3), round(end, 3), settings.max_pixels)
            clip = folder / identity[:2] / f"{identity}.mp4"
            try:
                written = write_clip(file, clip, start, end, settings.max_pixels)
            except MediaError as error:
                yield Rejection(name, without_folder(str(error).replace(str(clip), "the clip"), row["file"]), what=place)
                continue
            shot = said(row, shot=[round(start, 3), round(end, 3)], clip_sha256=content_hash(clip))
            yield shot | {"id": identity, "file": str(clip), "duration": round(written, 3)}

    return stage


def write_clip(source: Path, clip: Path, start: float, end: float, max_pixels: int) -> float:
    """Write the frames on screen in [start, end) as H.264 without sound or metadata, the same bytes each time; its length in seconds.

    A clip that is there already is left as it is.

    Raises:
        MediaError: the source cannot be decoded, or has no frame there.
    """
    if clip.is_file():
        return read_timeline(clip).duration
    timeline = read_timeline(source)
    clip.parent.mkdir(parents=True, exist_ok=True)
    part = clip.with_name(f"{clip.stem}.{os.getpid()}.{threading.get_ident()}.part")  # the same video may be there twice
    try:
        with (
            av.open(str(source), options=OPEN_OPTIONS) as opened,
            av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out,
        ):
            stream = opened.streams.video[0]
            base = float(stream.time_base or 1)
            if opened.format.name not in NO_INDEX:
                opened.seek(max(0, round(start / base)) + timeline.start, stream=stream)
            encoder, last = None, -1
            for frame in opened.decode(stream):
                stamp = frame.pts if frame.pts is not None else frame.dts
                seconds = None if stamp is None else (stamp - timeline.start) * base
                if seconds is None or seconds < start - 1e-6:
                    continue
                if seconds >= end - 1e-6:
                    break
                matrix = display_matrix(frame)
                as_is = frame.format.name == "yuv420p" and frame.width * frame.height <= max_pixels and not (frame.width | frame.height) & 1
                as_is = as_is and is_upright(matrix)
                planes = frame.to_ndarray() if as_is else None  # no conversion: FFmpeg's rounds by how memory happens to lie
                image = (
                    np.empty((frame.height, frame.width, 3), np.uint8)
                    if as_is
                    else fit(upright(frame.to_ndarray(format="rgb24"), matrix), max_pixels)
                )
                height, width = (max(2, n - n % 2) for n in image.shape[:2])  # 4:2:0 wants even sides
                if encoder is None:
                    encoder = out.add_stream("libx264", rate=Fraction(timeline.fps).limit_denominator(1001), options=ENCODER)
                    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
                    encoder.codec_context.time_base = Fraction(1, _TICKS)
                    encoder.codec_context.thread_count = 1
                shown = yuv420(image[: encoder.height, : encoder.width]) if planes is None else planes
                fresh = av.VideoFrame.from_ndarray(shown, format="yuv420p")
                fresh.pts = max(last + 1, round((seconds - start) * _TICKS))
                fresh.time_base = Fraction(1, _TICKS)
                last = fresh.pts
                out.mux(encoder.encode(fresh))
            if encoder is None:
                raise MediaError(f"{source}: no frame from {start:.2f} to {end:.2f} s")
            out.mux(encoder.encode())
        os.replace(part, clip)
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: a frame in the middle has another size than the first
        raise MediaError(f"{source}: {start:.2f} to {end:.2f} s cannot be written ({' '.join(str(error).split())})") from error
    finally:
        part.unlink(missing_ok=True)
    return read_timeline(clip).duration


def yuv420(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB, H and W even, as planar 4:2:0 in BT.601 limited range, uint8 [3 H / 2, W].

    In whole numbers: FFmpeg's own conversion depends on how memory happens to lie, and a clip must be the same bytes each time.
    """
    height, width = image.shape[:2]
    wide = image.astype(np.int32)
    red, green, blue = wide[..., 0], wide[..., 1], wide[..., 2]
    luma = ((66 * red + 129 * green + 25 * blue + 128) >> 8) + 16
    red, green, blue = (wide.reshape(height // 2, 2, width // 2, 2, 3).sum((1, 3)) + 2 >> 2).transpose(2, 0, 1)
    chroma = [((-38 * red - 74 * green + 112 * blue + 128) >> 8) + 128, ((112 * red - 94 * green - 18 * blue + 128) >> 8) + 128]
    return np.concatenate([plane.ravel() for plane in (luma, *chroma)]).reshape(height * 3 // 2, width).astype(np.uint8)
