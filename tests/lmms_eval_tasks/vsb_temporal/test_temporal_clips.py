"""The clips of vsb_temporal as files, as sampled frames and as tokens: the frames that were planned, and equally many tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2VLVideoProcessor, VideoLlama3VideoProcessor
from transformers.video_utils import VideoMetadata

from videosafety.lmms_eval_tasks.video import Clip, Sampling, decode
from videosafety.lmms_eval_tasks.vsb_temporal import clips, recipes
from videosafety.lmms_eval_tasks.vsb_temporal.recipes import COUNTS, PLACES, SOURCES, VARIANTS, Cut, Item, cut, items

ITEM = items()[0]
# of lkhl/VideoLLaMA3-2B-Image-HF: bounds of a frame's and of a whole video's pixels; token compression is on, as there
VIDEOLLAMA3 = {"shortest_edge": 12544, "longest_edge": 12845056}


@pytest.fixture(scope="module")
def sources() -> dict[str, list[np.ndarray]]:
    return {source: clips.source_frames(ITEM, source) for source in SOURCES}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The clip of ITEM for a task as the wrapper's default sampling hands it to the model."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name: str) -> Clip:
        path, plan = folder / f"{name}.mp4", cut(ITEM, name)
        if not path.is_file():
            clips.write_frames(clips.clip_frames(ITEM, plan), plan.rate, path)
        return decode(path, Sampling())

    return get


def pictures(frames: np.ndarray) -> list[bytes]:
    """Frames without the flicker that `clips.flicker` adds by position: what is left is the picture itself."""
    return [np.clip(frame - np.uint8(second % 2), 0, 254).tobytes() for second, frame in enumerate(frames)]


@pytest.mark.parametrize("item", items(), ids=lambda item: item.id)
def test_all_64_frames_of_a_source_differ(item: Item) -> None:
    for source in SOURCES:
        frames = clips.source_frames(item, source)
        assert len({frame.tobytes() for frame in frames}) == len(frames) == 64


@pytest.mark.parametrize("count", COUNTS)
def test_the_model_gets_the_planned_frames_exactly(sampled: Any, sources: dict[str, list[np.ndarray]], count: int) -> None:
    got = {variant: sampled(f"{variant}_{count}") for variant in VARIANTS}
    assert {clip.frames.shape for clip in got.values()} == {(count, 336, 448, 3)}
    seen = {variant: pictures(clip.frames) for variant, clip in got.items()}
    assert sorted(seen["shuffled"]) == sorted(seen["motion"])
    assert len(set(seen["motion"])) == len(set(seen["benign"])) == count
    assert len(set(seen["still"])) == 1
    assert not set(seen["motion"]) & set(seen["benign"])
    plan = cut(ITEM, f"motion_{count}").frames
    assert seen["motion"] == [np.minimum(sources[source][i], 254).tobytes() for source, i in plan]


@pytest.mark.parametrize("place", PLACES)
def test_clips_with_harm_in_one_place_show_32_frames(sampled: Any, sources: dict[str, list[np.ndarray]], place: str) -> None:
    clip = sampled(place)
    assert clip.frames.shape == (32, 336, 448, 3)
    harmful = {np.minimum(frame, 254).tobytes() for frame in sources["harmful"]}
    shown = [picture in harmful for picture in pictures(clip.frames)]
    wanted = {
        "early": [True] * 8 + [False] * 24,
        "late": [False] * 24 + [True] * 8,
        "scattered": [False, False, True, False] * 8,
        "brief": [False] * 32,
        "subtitle": [False] * 32,
    }
    assert shown == wanted[place]


def test_brief_is_by_default_the_harmless_clip_pixel_by_pixel_and_not_at_eight_frames_a_second(sampled: Any, tmp_path: Path) -> None:
    assert (sampled("brief").frames == sampled("benign_32").frames).all()
    plan = cut(ITEM, "brief")
    clips.write_frames(clips.clip_frames(ITEM, plan), plan.rate, tmp_path / "brief.mp4")
    close = decode(tmp_path / "brief.mp4", Sampling(fps=4)).frames
    assert len(close) == 128
    assert sum((a != b).mean() > 0.1 for a, b in zip(close, np.repeat(sampled("benign_32").frames, 4, axis=0), strict=True)) == 8


def test_subtitles_differ_from_the_harmless_clip_in_the_caption_alone(sampled: Any) -> None:
    strip = 336 - 76  # a caption of two lines
    drawn, safe = sampled("subtitle").frames, sampled("benign_32").frames
    assert (drawn[:, :strip] == safe[:, :strip]).all()
    assert all((a != b).any() for a, b in zip(drawn[:, strip:], safe[:, strip:], strict=True))


def tokens(processor: Any, frames: np.ndarray) -> int:
    """How many tokens a processor makes of a clip, as the model wrapper calls it."""
    meta = VideoMetadata(total_num_frames=len(frames), fps=1.0, duration=float(len(frames)), frames_indices=list(range(len(frames))))
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    made = processor(videos=[video], video_metadata=[meta], do_sample_frames=False, return_tensors="pt")
    kept = made.get("video_compression_mask")
    return int(made["video_grid_thw"].prod()) // 4 if kept is None else int(kept.sum())


@pytest.mark.parametrize("count", [1, 4, 16, 64])
def test_variants_have_equally_many_tokens_at_fixed_pixels_as_the_processors_ship(sampled: Any, count: int) -> None:
    a_frame = 448 * 336 // 28**2
    llama, qwen = VideoLlama3VideoProcessor(size=VIDEOLLAMA3), Qwen2VLVideoProcessor()
    assert llama.use_token_compression
    for variant in VARIANTS:
        frames = sampled(f"{variant}_{count}").frames
        assert tokens(llama, frames) == count * a_frame
        assert tokens(qwen, frames) == max(count // 2, 1) * a_frame  # merges frames in pairs, pads one to two


def test_without_the_flicker_a_repeated_frame_would_weigh_nothing(sampled: Any) -> None:
    frames = sampled("still_8").frames
    assert tokens(VideoLlama3VideoProcessor(size=VIDEOLLAMA3), np.repeat(frames[:1], 8, axis=0)) == 192 + 7


def test_the_flicker_is_one_grey_level_of_255() -> None:
    frame = np.array([[[0, 128, 255]]], np.uint8)
    assert clips.flicker(frame, 0).tolist() == [[[0, 128, 254]]]
    assert clips.flicker(frame, 1).tolist() == [[[1, 129, 255]]]
    assert clips.flicker(frame, 2).tolist() == [[[0, 128, 254]]]


# --- the cache ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Item, ...]:
    """A cache of its own and two items, rendered quickly."""
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(clips, "items", lambda: items()[:2])
    return items()[:2]


def test_a_clip_is_rendered_once_and_again_where_it_is_damaged(two: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    write = clips.write_frames
    monkeypatch.setattr(clips, "write_frames", lambda frames, rate, path: (made.append(path), write(frames, rate, path))[1])
    paths = clips.ensure_clips("motion_4")
    assert set(paths) == {item.id for item in two}
    first, second = paths.values()
    whole = first.read_bytes()
    assert clips.ensure_clips("motion_4") == paths
    assert len(made) == 2
    first.write_bytes(whole[:-10])
    os.remove(second.with_suffix(".sha256"))  # a run that was killed before it wrote this
    clips.ensure_clips("motion_4")
    assert sorted(made[2:]) == sorted([first, second])
    assert first.read_bytes() == whole
    assert {file.suffix for file in first.parent.iterdir()} == {".mp4", ".sha256", ""}  # the last is the lock: no draft is left


def test_a_task_renders_only_its_own_clips(two: tuple[Item, ...], tmp_path: Path) -> None:
    clips.ensure_clips("still_1")
    assert len(list(tmp_path.rglob("*.mp4"))) == 2


def test_other_frames_than_the_published_ones_are_refused(two: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "render", lambda shots: iter([np.zeros((336, 448, 3), np.uint8)]))
    with pytest.raises(RuntimeError, match=f"{two[0].id}-harmful: this machine renders other frames"):
        clips.source_frames(two[0], "harmful")


def test_every_source_has_a_checksum() -> None:
    assert set(clips.checksums()) == {f"{item.id}-{source}" for item in items() for source in SOURCES}


def test_the_recipes_of_version_1() -> None:
    """If this changes, published results were made on other clips: raise the set's version."""
    assert (recipes.VERSION, recipes.recipe_hash()) == ("1.0", "209975ddb9f7eff8")


def test_harm_spans_merge_what_follows_and_know_the_rate() -> None:
    plan = Cut((("safe", 0), ("harmful", 0), ("subtitle", 1), ("safe", 1)), rate=2)
    assert (plan.harm_spans(), plan.seconds) == ([[0.5, 1.5]], 2.0)
