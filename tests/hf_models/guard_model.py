"""What the tests of the guard share: one tiny alarm model for the session, and clips to show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from conftest import write_video
from videosafety.hf_models.guard import Guard
from videosafety.hf_models.tiny import build_tiny


@pytest.fixture(scope="session")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random alarm checkpoint."""
    return build_tiny(tmp_path_factory.mktemp("models") / "alarm")


@pytest.fixture(scope="session")
def guard(alarm: Path) -> Guard:
    return Guard.load(str(alarm), device="cpu")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 of 5 s, b.mp4 of 3 s, i.png, and files that are no media: text.mp4, text.png, none.mp4, cut.mp4."""
    folder = tmp_path_factory.mktemp("media")
    whole = write_video(folder / "a.mp4", frames=40, size=(112, 84)).read_bytes()
    write_video(folder / "b.mp4", frames=24, size=(56, 56))
    Image.new("RGB", (60, 40), "red").save(folder / "i.png")
    (folder / "text.mp4").write_text("I am not a video")
    (folder / "text.png").write_text("nor I an image")
    (folder / "none.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder
