"""Decoding and sampling: the right frames, by every decoder, once; and every hostile file one clear MediaError."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import write_video
from videosafety.lmms_eval_tasks import video
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
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 64)
    with pytest.raises(MediaError, match="over the limit"):
        decode(file, Sampling())
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 1 << 20)
    monkeypatch.setattr(video, "MAX_PACKETS", 3)
    with pytest.raises(MediaError, match="more than 3 frames"):
        decode(file, Sampling())


def test_pixel_budget_is_kept_and_the_aspect_too(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", size=(128, 64))
    frames = decode(file, Sampling(max_pixels=2048)).frames
    assert frames.shape[1] * frames.shape[2] <= 2048
    assert frames.shape[2] / frames.shape[1] == pytest.approx(2, rel=0.05)


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

    def test_the_oldest_go_when_the_folder_is_full(self, tmp_path: Path) -> None:
        for n in range(4):
            FrameCache(tmp_path / "cache", Sampling()).get(write_video(tmp_path / f"{n}.mp4", frames=8 + n))
        video.prune(tmp_path / "cache", 0)
        assert not list((tmp_path / "cache").glob("*/*.npz"))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"], ids=["empty", "a cut PNG", "a cut GIF"])
def test_hostile_images_are_media_errors(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(data)
    with pytest.raises(MediaError):
        video.load_image(file)
