"""Decoding and sampling: the right frames, by every decoder, once; and every hostile file one clear MediaError."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from conftest import write_video
from videosafety.lmms_eval_tasks import frame_store, frames, video
from videosafety.lmms_eval_tasks.video import FrameCache, MediaError, Sampling, Timeline, decode, sample_indices


def shown(clip: video.Clip) -> list[int]:
    """Which frame numbers a clip of `write_video` shows, read off the grey level of its left half."""
    return [round(float(frame[:, : frame.shape[1] // 4].mean()) / 7) for frame in clip.frames]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord"])
@pytest.mark.parametrize("gop", [4, 12, 250], ids=["seeks between frames", "seeks sometimes", "one key frame"])
def test_every_decoder_gives_the_frames_asked_for(tmp_path: Path, backend: str, gop: int) -> None:
    if problem := video.backend_problem(backend):
        pytest.skip(problem)
    file = write_video(tmp_path / "clip.mp4", frames=32, fps=8, gop=gop)
    clip = decode(file, Sampling(fps=1), backend)
    assert clip.indices == [0, 8, 16, 24]
    assert shown(clip) == clip.indices
    assert clip.seconds == pytest.approx([0, 1, 2, 3])
    assert (clip.total, clip.duration) == (32, pytest.approx(4.0))


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_decoders_that_work_in_batches_keep_the_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if problem := video.backend_problem(backend):
        pytest.skip(problem)
    file = write_video(tmp_path / "clip.mp4", frames=160)
    clip = decode(file, Sampling(), backend)
    assert len(clip.indices) > 2 * video.FRAMES_AT_ONCE
    assert shown(clip) == [round(7 * i % 256 / 7) for i in clip.indices]
    monkeypatch.setattr(frames, "MAX_CLIP_BYTES", 100)
    monkeypatch.setattr(video, "_batched", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MediaError, match="over the limit of"):
        decode(file, Sampling(), backend)


def test_seeking_gives_the_same_frames_as_decoding_on(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=36, fps=4, gop=3)
    every = decode(file, Sampling(fps=4))
    few = decode(file, Sampling(fps=0.5))
    assert len(every.indices) == 36
    assert np.array_equal(every.frames[few.indices], few.frames)


@pytest.mark.parametrize(
    ("frames", "fps", "sampling", "expected"),
    [
        (1, 8, Sampling(fps=1), [0]),
        (300, 10_000, Sampling(fps=1), [0]),
        (300, 10_000, Sampling(fps=100), [0, 100, 200]),
        (32, 8, Sampling(fps=2, max_frames=4), [0, 8, 16, 24]),
        (32, 8, Sampling(fps=100, max_frames=500), list(range(32))),
    ],
    ids=["one frame", "10,000 frames a second", "10,000 frames a second, sampled", "spread over the whole clip", "no frame twice"],
)
def test_odd_rates(tmp_path: Path, frames: int, fps: int, sampling: Sampling, expected: list[int]) -> None:
    assert decode(write_video(tmp_path / "clip.mp4", frames, fps), sampling).indices == expected


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.floats(0.001, 5), min_size=0, max_size=60),
    fps=st.floats(0.01, 240),
    max_frames=st.integers(1, 50),
)
def test_sampled_indices_ascend_and_keep_the_limit(gaps: list[float], fps: float, max_frames: int) -> None:
    timeline = Timeline([0.0, *np.cumsum(gaps).tolist()], [0])
    indices = sample_indices(timeline, Sampling(fps, max_frames))
    assert indices[0] == 0
    assert len(indices) <= max_frames
    assert all(a < b for a, b in pairwise(indices))
    assert indices[-1] < len(timeline.seconds)


def hostile(folder: Path) -> dict[str, Path]:
    whole = write_video(folder / "whole.mp4", frames=64).read_bytes()
    files = {
        "truncated at the end": whole[: len(whole) * 6 // 10],
        "truncated in the header": whole[:200],
        "a text file named .mp4": b"this is not a video",
        "an empty file": b"",
        "a playlist named .mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n",
        "a concat script named .mp4": b"ffconcat version 1.0\nfile /etc/hostname\n",
    }
    paths = {}
    for name, data in files.items():
        paths[name] = folder / f"{len(paths)}.mp4"
        paths[name].write_bytes(data)
    paths["no frames"] = write_video(folder / "none.mp4", frames=0)
    paths["a missing file"] = folder / "missing.mp4"
    paths["a folder"] = folder
    return paths


NAMES = [
    "truncated at the end", "truncated in the header", "a text file named .mp4", "an empty file", "a playlist named .mp4",
    "a concat script named .mp4", "no frames", "a missing file", "a folder",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_are_one_clear_error(tmp_path: Path, name: str) -> None:
    path = hostile(tmp_path)[name]
    with pytest.raises(MediaError) as caught:
        decode(path, Sampling())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_urls_are_never_followed() -> None:
    with pytest.raises(MediaError, match="only local files"):
        decode("http://127.0.0.1:9/a.mp4", Sampling())


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(video, "MAX_FILE_BYTES", 10)
    with pytest.raises(MediaError, match="over the limit"):
        decode(file, Sampling())
    monkeypatch.setattr(video, "MAX_FILE_BYTES", 1 << 30)
    for owner in (video, frames):
        with monkeypatch.context() as patch:
            patch.setattr(owner, "MAX_FRAME_PIXELS", 64)
            with pytest.raises(MediaError, match="over the limit"):
                decode(file, Sampling())
    monkeypatch.setattr(video, "MAX_PACKETS", 3)
    with pytest.raises(MediaError, match="more than 3 frames"):
        decode(file, Sampling())


def test_pixel_budget_is_kept_and_the_aspect_too(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", size=(128, 64))
    frames = decode(file, Sampling(max_pixels=2048)).frames
    assert frames.shape[1] * frames.shape[2] <= 2048
    assert frames.shape[2] / frames.shape[1] == pytest.approx(2, rel=0.05)


def test_the_frames_of_a_clip_have_a_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=32, size=(128, 64))  # four frames of 24,576 bytes
    monkeypatch.setattr(frames, "MAX_CLIP_BYTES", 60_000)
    monkeypatch.setattr(frames, "fit", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MediaError, match=r"4 frames of 128x64 take .* set max_pixels, or a lower max_frames"):
        decode(file, Sampling())
    monkeypatch.undo()
    monkeypatch.setattr(frames, "MAX_CLIP_BYTES", 60_000)
    assert len(decode(file, Sampling(max_pixels=2048)).frames) == 4
    assert len(decode(file, Sampling(max_frames=2)).frames) == 2


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    made = frames.Frames(tmp_path / "clip.mp4", [0, 1], None)
    made.add(0, np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(MediaError, match="not of one size"):
        made.add(1, np.zeros((6, 4, 3), np.uint8))


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(max_frames=6)], ids=["every second", "6 frames"])
def test_a_seek_that_lands_behind_its_key_frame_loses_nothing(tmp_path: Path, codec: str, sampling: Sampling) -> None:
    """MPEG-TS has no index: a seek in it is a guess."""
    clip = decode(write_video(tmp_path / "clip.ts", frames=500, fps=25, gop=12, codec=codec), sampling)
    assert len(clip.indices) == min(20, sampling.max_frames)
    assert shown(clip) == [round(7 * i % 256 / 7) for i in clip.indices]


@pytest.mark.parametrize(("lasts", "allowed"), [(0, 120), (20, 120), (1800, 1800), (3600, 3600), (1e9, 3600)])
def test_a_long_video_has_more_time_to_decode(lasts: float, allowed: float) -> None:
    assert video.time_allowed(lasts) == allowed


def test_decoding_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "SECONDS_TO_DECODE", (0.0, 0.0))
    with pytest.raises(MediaError, match="took over 0 s"):
        decode(write_video(tmp_path / "clip.mp4"), Sampling())


def turned(file: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The MP4 file with another display matrix in its track header."""

    def stored(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    head, found, tail = file.read_bytes().rpartition(stored(1, 0, 0, 1))
    assert found
    file.write_bytes(head + stored(*matrix) + tail)
    return file


@pytest.mark.parametrize(
    ("matrix", "shown_as"),
    [
        ((1, 0, 0, 1), lambda f: f),
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
    ],
    ids=["upright", "clockwise", "upside down", "anticlockwise", "mirrored", "flipped", "transposed"],
)
def test_frames_are_turned_as_the_file_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown_as: Callable[[np.ndarray], np.ndarray]
) -> None:
    file = write_video(tmp_path / "clip.mp4")
    wanted = [shown_as(frame) for frame in decode(file, Sampling()).frames]
    assert np.array_equal(decode(turned(file, matrix), Sampling()).frames, wanted)


def test_a_clockwise_turn_brings_the_left_side_up(tmp_path: Path) -> None:
    frame = decode(turned(write_video(tmp_path / "clip.mp4", size=(64, 48)), (0, 1, -1, 0)), Sampling()).frames[1]
    assert frame.shape == (64, 48, 3)
    assert frame[:30].mean() > 50 > 5 > frame[34:].mean()


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_other_decoders_refuse_turned_video(tmp_path: Path, backend: str) -> None:
    if problem := video.backend_problem(backend):
        pytest.skip(problem)
    with pytest.raises(MediaError, match="use video_backend=pyav"):
        decode(turned(write_video(tmp_path / "clip.mp4"), (0, 1, -1, 0)), Sampling(), backend)


@pytest.mark.parametrize("orientation", [*range(10), 99])
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    stored, exif = Image.new("RGB", (60, 40), "black"), Image.Exif()
    stored.paste("white", (0, 0, 20, 10))
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.png", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(tmp_path / "image.png"))
    assert wanted.size == ((40, 60) if orientation in (5, 6, 7, 8) else (60, 40))
    assert np.array_equal(video.load_image(tmp_path / "image.png"), wanted)


def test_a_damaged_exif_entry_ends_no_run(tmp_path: Path) -> None:
    """Pillow cannot write such an entry again, and raises struct.error."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x0103, 2, 4, b"abc")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "image.jpg", exif=exif + bytes(4))
    assert video.load_image(tmp_path / "image.jpg").size == (40, 60)


@pytest.mark.parametrize(
    "exif",
    [b"", b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 20],
    ids=["empty", "no header", "garbage", "entries cut off"],
)
def test_an_image_with_damaged_exif_is_shown_as_stored(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "image.jpg", exif=exif)
    assert video.load_image(tmp_path / "image.jpg").size == (60, 40)


@pytest.mark.parametrize("bad", [{"fps": 0}, {"fps": -1}, {"max_frames": 0}, {"max_pixels": 10}])
def test_senseless_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Sampling(**bad)


class TestCache:
    def test_one_decode_for_all_threads_and_all_later_runs(self, tmp_path: Path) -> None:
        file = write_video(tmp_path / "clip.mp4")
        cache = FrameCache(tmp_path / "cache", Sampling())
        threads = [threading.Thread(target=cache.get, args=(file,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        later = FrameCache(tmp_path / "cache", Sampling())
        assert np.array_equal(later.get(file).frames, decode(file, Sampling()).frames)
        assert (cache.decodes, later.decodes) == (1, 0)

    def test_same_content_under_another_name_is_not_decoded_again(self, tmp_path: Path) -> None:
        file = write_video(tmp_path / "clip.mp4")
        twin = tmp_path / "twin.mp4"
        twin.write_bytes(file.read_bytes())
        cache = FrameCache(tmp_path / "cache", Sampling())
        cache.get(file)
        cache.get(twin)
        assert cache.decodes == 1

    def test_other_content_under_the_same_name_is_decoded_again(self, tmp_path: Path) -> None:
        file = write_video(tmp_path / "clip.mp4", frames=8)
        cache = FrameCache(tmp_path / "cache", Sampling())
        assert cache.get(file).total == 8
        write_video(file, frames=16)
        assert cache.get(file).total == 16

    def test_another_sampling_is_another_clip(self, tmp_path: Path) -> None:
        file = write_video(tmp_path / "clip.mp4", frames=32)
        assert len(FrameCache(tmp_path / "cache", Sampling(fps=1)).get(file).frames) == 4
        assert len(FrameCache(tmp_path / "cache", Sampling(fps=2)).get(file).frames) == 8

    @pytest.mark.parametrize("damage", [b"", b"not a zip file", None], ids=["empty", "garbage", "cut in half"])
    def test_a_damaged_entry_is_made_again(self, tmp_path: Path, damage: bytes | None) -> None:
        file = write_video(tmp_path / "clip.mp4")
        FrameCache(tmp_path / "cache", Sampling()).get(file)
        (entry,) = (tmp_path / "cache").glob("*/*.npz")
        data = entry.read_bytes()
        entry.write_bytes(data[: len(data) // 2] if damage is None else damage)
        cache = FrameCache(tmp_path / "cache", Sampling())
        assert shown(cache.get(file)) == [0, 8]
        assert cache.decodes == 1

    def test_failures_are_not_cached(self, tmp_path: Path) -> None:
        file = tmp_path / "clip.mp4"
        cache = FrameCache(tmp_path / "cache", Sampling())
        with pytest.raises(MediaError):
            cache.get(file)
        write_video(file)
        assert shown(cache.get(file)) == [0, 8]

    def test_clips_of_an_earlier_version_are_not_served(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = write_video(tmp_path / "clip.mp4")
        with monkeypatch.context() as patch:
            patch.setattr(video, "VERSION", 1)
            FrameCache(tmp_path / "cache", Sampling()).get(file)
        cache = FrameCache(tmp_path / "cache", Sampling())
        cache.get(file)
        assert cache.decodes == 1

    def test_clips_in_memory_have_a_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(video, "MAX_CLIP_BYTES", 40_000)  # two of these clips
        cache = FrameCache(tmp_path / "cache", Sampling())
        for n in range(4):
            cache.get(write_video(tmp_path / f"{n}.mp4", frames=16 + n))
        assert sum(clip.frames.nbytes for clip in cache._recent.values()) <= 40_000

    def test_the_limit_of_bytes_is_kept_during_a_run(self, tmp_path: Path) -> None:
        cache = FrameCache(tmp_path / "cache", Sampling(), max_bytes=3000)
        for n in range(8):
            cache.get(write_video(tmp_path / f"{n}.mp4", frames=8 + n))
            assert sum(f.stat().st_size for f in (tmp_path / "cache").glob("*/*")) <= 3000
        assert list((tmp_path / "cache").glob("*/*.npz")), "the limit must leave room for some"

    def test_a_full_disk_costs_the_cache_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(file: Path, arrays: dict[str, np.ndarray]) -> None:
            file.write_bytes(b"half a")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(frame_store, "_write", full)
        cache = FrameCache(tmp_path / "cache", Sampling())
        for n in range(3):
            assert shown(cache.get(write_video(tmp_path / f"{n}.mp4", frames=16 + n)))[:2] == [0, 8]
        (warning,) = caplog.messages
        assert "No space left on device" in warning
        assert not [f for f in (tmp_path / "cache").glob("*/*") if f.is_file()]

    def test_parts_count_and_go_once_their_run_is_gone(self, tmp_path: Path) -> None:
        folder = tmp_path / "cache" / "ab"
        folder.mkdir(parents=True)
        now = time.time()
        for name, age in {"old.1.part": 7200, "new.2.part": 5, "clip.npz": 10}.items():
            (folder / name).write_bytes(bytes(100))
            os.utime(folder / name, (now - age, now - age))
        frame_store.prune(tmp_path / "cache", 250)
        assert sorted(f.name for f in folder.iterdir()) == ["clip.npz", "new.2.part"]
        frame_store.prune(tmp_path / "cache", 150)
        assert [f.name for f in folder.iterdir()] == ["new.2.part"]

    def test_the_oldest_go_when_the_folder_is_full(self, tmp_path: Path) -> None:
        for n in range(4):
            FrameCache(tmp_path / "cache", Sampling()).get(write_video(tmp_path / f"{n}.mp4", frames=8 + n))
        frame_store.prune(tmp_path / "cache", 0)
        assert not list((tmp_path / "cache").glob("*/*.npz"))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"], ids=["empty", "a cut PNG", "a cut GIF"])
def test_hostile_images_are_media_errors(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(data)
    with pytest.raises(MediaError):
        video.load_image(file)
