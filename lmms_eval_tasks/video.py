"""Decode and sample frames once: which frames (from the file's own timestamps), by which decoder, cached on disk by content."""

from __future__ import annotations

import bisect
import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image

from videosafety.lmms_eval_tasks.frame_store import FrameStore
from videosafety.lmms_eval_tasks.frames import (
    MAX_CLIP_BYTES,
    MAX_FRAME_PIXELS,
    Frames,
    MediaError,
    display_matrix,
    exif_upright,
    fit,
    upright,
)
from videosafety.lmms_eval_tasks.whole_images import whole_images_only

BACKENDS = ("pyav", "torchcodec", "decord")
# Benchmark media are hostile input. A file may neither reach out (playlists, nested URLs) nor make the decoder allocate without end.
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,asf,ogg,h264,hevc",
}
MAX_FILE_BYTES = 2 << 30
SECONDS_TO_DECODE = 120.0, 3600.0  # at least, at most; between them a video may take as long as it lasts
MAX_PACKETS = 2_000_000
FRAMES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video the model sees.

    fps: frames per second of video, > 0. max_frames: at most so many, spread evenly over the whole video, >= 1.
    max_pixels: at most so many pixels a frame (larger frames are scaled down, aspect kept), or None for the original size.
    Defaults fps 1 and 180 frames are VideoLLaMA3's evaluation settings (arXiv 2501.13106).
    """

    fps: float = 1.0
    max_frames: int = 180
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps must be above 0, got {self.fps}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.max_pixels is not None and self.max_pixels < 28 * 28:
            raise ValueError(f"max_pixels must be at least {28 * 28}, got {self.max_pixels}")


@dataclass(frozen=True, slots=True)
class Clip:
    """Sampled frames, uint8 [T, H, W, 3] RGB; `indices` and `seconds` say where each lies in the video of `total` frames."""

    frames: np.ndarray
    indices: list[int]
    seconds: list[float]
    total: int
    fps: float
    duration: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Presentation times of all frames, in seconds from the first, ascending; `keys` are the indices of key frames.

    `start` is the first frame's time stamp in units of the stream's time base, which need not be 0.
    """

    seconds: list[float]
    keys: list[int]
    start: int = 0

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last one's end (the last frame is taken to last as long as the average)."""
        n = len(self.seconds)
        return self.seconds[-1] * n / (n - 1) if n > 1 else 0.0

    @property
    def fps(self) -> float:
        return len(self.seconds) / self.duration if self.duration > 0 else 1.0


def sample_indices(timeline: Timeline, sampling: Sampling) -> list[int]:
    """Indices of the frames on screen at 0, 1/fps, 2/fps … seconds; spread evenly over the video where that would be too many.

    Decided on the real timestamps, so a header that lies about rate or length changes nothing. Never empty, strictly ascending.
    """
    wanted = max(1, int(np.ceil(timeline.duration * sampling.fps - 1e-6)))
    if wanted <= sampling.max_frames:
        times = [i / sampling.fps for i in range(wanted)]
    else:
        times = [i * timeline.duration / sampling.max_frames for i in range(sampling.max_frames)]
    on_screen = (bisect.bisect_right(timeline.seconds, t + 1e-6) - 1 for t in times)
    return sorted({max(0, i) for i in on_screen})


def decode(path: str | os.PathLike[str], sampling: Sampling, backend: str = "pyav") -> Clip:
    """The sampled frames of a local video file.

    Raises:
        MediaError: missing, empty, too large, not a video, no frames, truncated before a sampled frame, too slow to decode, sampled frames
            that take more than MAX_CLIP_BYTES or change their size, or stored turned where the backend is not pyav.
        ValueError: unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown video backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    file = checked_file(path)
    timeline = read_timeline(file)
    indices = sample_indices(timeline, sampling)
    frames = Frames(file, indices, sampling.max_pixels)
    if backend == "pyav":
        _pyav(file, timeline, frames)
    else:
        _check_for(backend, file, frames)
        {"torchcodec": _torchcodec, "decord": _decord}[backend](file, frames)
    seconds = [timeline.seconds[i] for i in indices]
    return Clip(frames.whole(), indices, seconds, len(timeline.seconds), timeline.fps, timeline.duration)


def checked_file(path: str | os.PathLike[str]) -> Path:
    """The path, if it is a regular local file of acceptable size; MediaError otherwise. URLs are never followed."""
    file = Path(path)
    if "://" in str(path):
        raise MediaError(f"{path}: only local files are read; download it first")
    try:
        size = file.stat().st_size if file.is_file() else None
    except OSError as error:
        raise MediaError(f"{file}: cannot be read ({error.strerror})") from error
    if size is None:
        raise MediaError(f"{file}: no such file")
    if size == 0:
        raise MediaError(f"{file}: the file is empty")
    if size > MAX_FILE_BYTES:
        raise MediaError(f"{file}: {size / 2**30:.1f} GiB is over the limit of {MAX_FILE_BYTES / 2**30:.0f} GiB")
    return file


def read_timeline(file: Path) -> Timeline:
    """Every frame's presentation time, read from the packets without decoding one."""
    try:
        with av.open(str(file), options=OPEN_OPTIONS) as container:
            stream = _video_stream(container, file)
            base = float(stream.time_base or 1)
            promised = stream.frames if "mp4" in container.format.name else 0  # elsewhere the count in the header is a guess
            times: list[tuple[int, bool]] = []
            packets = 0
            for packet in container.demux(stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                packets += packet.size > 0
                if stamp is not None and packet.size and not packet.is_discard:  # an edit list can discard frames
                    times.append((stamp, packet.is_keyframe))
                if packets > MAX_PACKETS:
                    raise MediaError(f"{file}: more than {MAX_PACKETS} frames")
    except av.error.FFmpegError as error:
        raise MediaError(f"{file}: not a readable video ({error.strerror or type(error).__name__})") from error
    if not times:
        raise MediaError(f"{file}: the video has no frames")
    if packets < promised:
        raise MediaError(f"{file}: truncated, {packets} of {promised} frames are there")
    times.sort()
    start = times[0][0]
    return Timeline([(t - start) * base for t, _ in times], [i for i, (_, key) in enumerate(times) if key], start)


def _video_stream(container: av.container.InputContainer, file: Path) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise MediaError(f"{file}: the file has no video stream")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        raise MediaError(f"{file}: {stream.width}x{stream.height} is over the limit of {MAX_FRAME_PIXELS} pixels a frame")
    return stream


def time_allowed(duration: float) -> float:
    """Seconds that the decoding of a video of `duration` seconds may take."""
    least, most = SECONDS_TO_DECODE
    return max(least, min(duration, most))


def _pyav(file: Path, timeline: Timeline, frames: Frames) -> None:
    """Decode forward, and jump to the key frame before the next wanted frame wherever a whole group of pictures can be skipped."""
    allowed = time_allowed(timeline.duration)
    deadline = time.monotonic() + allowed
    try:
        _decode_runs(file, timeline, _runs(timeline, frames.indices), frames, deadline)
        if frames.missing:  # a seek can miss its key frame, and does in MPEG-TS, which has no index: then from the start, without seeks
            _decode_runs(file, timeline, [frames.indices], frames, deadline)
    except av.error.FFmpegError as error:
        found = len(frames.indices) - len(frames.missing)
        raise MediaError(f"{file}: decoding failed after {found} of {len(frames.indices)} frames ({error.strerror})") from error
    except TimeoutError as error:
        raise MediaError(f"{file}: decoding took over {allowed:.0f} s") from error


def _decode_runs(file: Path, timeline: Timeline, runs: list[list[int]], frames: Frames, deadline: float) -> None:
    """Add the frames of these runs; those behind a seek that came out too late are left missing. Raises TimeoutError after the deadline."""
    wanted = {_tick(timeline.seconds[i]): i for i in frames.indices}
    with av.open(str(file), options=OPEN_OPTIONS) as container:
        stream = _video_stream(container, file)
        frames.room(stream.height, stream.width)
        stream.thread_type = "AUTO"
        base = float(stream.time_base or 1)
        for run in runs:
            key = bisect.bisect_right(timeline.keys, run[0]) - 1
            sought = None if key <= 0 or len(runs) == 1 else timeline.seconds[timeline.keys[key]]
            if sought is not None:
                container.seek(round(sought / base) + timeline.start, stream=stream)
            for frame in container.decode(stream):
                if time.monotonic() > deadline:
                    raise TimeoutError
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is None:
                    continue
                tick = _tick((stamp - timeline.start) * base)
                if sought is not None and tick > _tick(sought):
                    break
                sought = None
                index = wanted.get(tick)
                if index is not None and index in frames.missing:
                    frames.add(index, upright(frame.to_ndarray(format="rgb24"), display_matrix(frame)))
                if frames.missing.isdisjoint(run):
                    break


def _check_for(backend: str, file: Path, frames: Frames) -> None:
    """Raises MediaError where the frames take too much memory, or have to be turned: other decoders than PyAV may or may not turn them."""
    try:
        with av.open(str(file), options=OPEN_OPTIONS) as container:
            stream = _video_stream(container, file)
            frames.room(stream.height, stream.width)
            matrix = next(display_matrix(frame) for frame in container.decode(stream))
    except av.error.FFmpegError as error:
        raise MediaError(f"{file}: not a readable video ({error.strerror or type(error).__name__})") from error
    except StopIteration as error:
        raise MediaError(f"{file}: the video has no frames") from error
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise MediaError(f"{file}: phones store video turned, and {backend} may show this one on its side; use video_backend=pyav")


def _tick(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _runs(timeline: Timeline, indices: Sequence[int]) -> list[list[int]]:
    """The wanted frames in runs that share decoding: a new run starts where at least one key frame can be jumped to."""
    runs: list[list[int]] = [[indices[0]]]
    for previous, index in pairwise(indices):
        keys_between = bisect.bisect_right(timeline.keys, index) - bisect.bisect_right(timeline.keys, previous)
        if keys_between > 1:  # one key frame ahead comes anyway as fast by decoding on; two or more are worth a seek
            runs.append([index])
        else:
            runs[-1].append(index)
    return runs


def _batched(indices: list[int]) -> list[list[int]]:
    """In pieces: these decoders hold whole batches at the video's full size."""
    return [indices[i : i + FRAMES_AT_ONCE] for i in range(0, len(indices), FRAMES_AT_ONCE)]


def _torchcodec(file: Path, frames: Frames) -> None:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(str(file), dimension_order="NHWC")
        for some in _batched(frames.indices):
            for index, frame in zip(some, decoder.get_frames_at(indices=some).data, strict=True):
                frames.add(index, frame.numpy())
    except (RuntimeError, IndexError) as error:
        raise MediaError(f"{file}: torchcodec could not decode it ({str(error).splitlines()[0]})") from error


def _decord(file: Path, frames: Frames) -> None:
    import decord

    try:
        decoder = decord.VideoReader(str(file), num_threads=1)
        for some in _batched(frames.indices):
            for index, frame in zip(some, decoder.get_batch(some).asnumpy(), strict=True):
                frames.add(index, frame)
    except (decord.DECORDError, IndexError) as error:
        raise MediaError(f"{file}: decord could not decode it ({str(error).splitlines()[0]})") from error


def backend_problem(backend: str) -> str | None:
    """None where the decoder works here, tried on a two-frame video, else one line that says what to install.

    A decoder that does not load must be found out before the run: it is no fault of the media.
    """
    if backend not in BACKENDS:
        return f"unknown video backend {backend!r}: choose one of {', '.join(BACKENDS)}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=1)
            stream.width = stream.height = 32
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            for packet in (*stream.encode(frame), *stream.encode(frame), *stream.encode()):
                container.mux(packet)
        try:
            decode(path, Sampling(), backend)
        except ImportError:
            return f"the video backend {backend} is not installed: pip install 'videosafety[{backend}]', or use video_backend=pyav"
        except (MediaError, RuntimeError, OSError) as error:
            needs = " (it needs FFmpeg's shared libraries, e.g. apt-get install ffmpeg)" if backend == "torchcodec" else ""
            return f"the video backend {backend} does not work here{needs}; use video_backend=pyav ({str(error).splitlines()[0]})"
    return None


def load_image(image: str | os.PathLike[str] | Image.Image, max_pixels: int | None = None) -> Image.Image:
    """An image as RGB, turned as its EXIF says, within the pixel budget. Raises MediaError where it is missing, corrupt or too large."""
    try:
        with whole_images_only():
            opened = Image.open(checked_file(image)) if isinstance(image, (str, os.PathLike)) else image
            if opened.width * opened.height > MAX_FRAME_PIXELS:
                raise MediaError(f"{image}: {opened.width}x{opened.height} is over the limit of {MAX_FRAME_PIXELS} pixels")
            rgb = exif_upright(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on hostile files
        raise MediaError(f"{image}: not a readable image ({error})") from error
    return Image.fromarray(fit(np.asarray(rgb), max_pixels)) if max_pixels else rgb


# --- cache -------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of a local file's bytes; read again only when size or time of change differ."""
    file = checked_file(path)
    stat = file.stat()
    return _digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


VERSION = 2  # of how frames come out of a file. 2: turned as the file says


class FrameCache:
    """Clips on disk, keyed by the file's content, the sampling, the decoder and VERSION; the last few stay in memory too.

    Threads that ask for the same clip share one decode. `decodes` counts how often a video was really decoded.
    """

    def __init__(self, folder: Path, sampling: Sampling, backend: str = "pyav", max_bytes: int = 20 << 30) -> None:
        self.sampling, self.backend = sampling, backend
        self.decodes = 0
        self._recent: OrderedDict[str, Clip] = OrderedDict()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()
        self.store = FrameStore(folder, max_bytes)

    def get(self, path: str | os.PathLike[str]) -> Clip:
        """The clip, from memory, from disk, or decoded now. Raises MediaError as `decode` does; failures are never cached."""
        policy = "_".join(f"{key}{value}" for key, value in asdict(self.sampling).items())
        key = f"{content_hash(path)}_{policy}_{self.backend}_v{VERSION}"
        with self._guard:
            lock = self._locks[key]
        with lock:
            with self._guard:
                clip = self._recent.get(key)
            if clip is None:
                clip = self._load(key, path)
                with self._guard:
                    self._recent[key] = clip
                    while len(self._recent) > 8 or sum(c.frames.nbytes for c in self._recent.values()) > MAX_CLIP_BYTES:
                        self._recent.popitem(last=False)
            return clip

    def _load(self, key: str, path: str | os.PathLike[str]) -> Clip:
        stored = self.store.read(key)
        if stored is not None:
            total, fps, duration = stored["facts"].tolist()
            return Clip(stored["frames"], stored["indices"].tolist(), stored["seconds"].tolist(), int(total), fps, duration)
        clip = decode(path, self.sampling, self.backend)
        with self._guard:
            self.decodes += 1
        facts = np.array([clip.total, clip.fps, clip.duration])
        self.store.write(key, {"frames": clip.frames, "indices": np.array(clip.indices), "seconds": np.array(clip.seconds), "facts": facts})
        return clip
