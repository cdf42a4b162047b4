"""Which files a published set takes for clips: what evaluation would refuse is refused here too, with the row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import write_video
from videosafety.hub_cards.safety_set import read_clip
from videosafety.hub_cards.upload import PublishError

HOSTILE: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "a list of files": (lambda f, _: f.write_text("ffconcat version 1.0\nfile good.mp4\n"), "is no video that can be read"),
    "a playlist": (lambda f, _: f.write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n"), "is no video that can be read"),
    "a picture": (lambda f, _: f.write_bytes(b"P6 1 1 255 abc"), "is no video that can be read"),
    "cut short": (lambda f, data: f.write_bytes(data[: len(data) // 2]), "is no video that can be read"),
    "empty": (lambda f, _: f.write_bytes(b""), "the file is empty"),
    "a folder": (lambda f, _: f.mkdir(), "no such file"),
    "not there": (lambda f, _: None, "is not there; add the video"),
}


@pytest.mark.parametrize(("write", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_clip(write: Callable[[Path, bytes], object], says: str, tmp_path: Path) -> None:
    write(tmp_path / "x.mp4", write_video(tmp_path / "good.mp4").read_bytes())
    with pytest.raises(PublishError, match="row h0") as error:
        read_clip({"id": "h0", "video": str(tmp_path / "x.mp4")})
    assert says in str(error.value)


def test_a_clip_is_read_from_its_header(tmp_path: Path) -> None:
    clip = read_clip({"id": "h0", "video": str(write_video(tmp_path / "good.mp4"))})
    assert (clip.width, clip.height, clip.fps, clip.seconds) == (64, 48, 8.0, 2.0)
