"""A cut image is no image, whatever lmms-eval told Pillow, and Pillow is left as it was found."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from videosafety.lmms_eval_tasks.video import MediaError, load_image
from videosafety.lmms_eval_tasks.whole_images import whole_images_only


@pytest.fixture(params=[True, False], ids=["as lmms-eval sets it", "Pillow's default"])
def switch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    return request.param


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_cut_image_is_a_media_error_and_a_whole_one_is_read(tmp_path: Path, switch: bool, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file)
    assert load_image(file).size == (64, 64)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(MediaError, match="not a readable image"):
        load_image(file)
    assert switch is ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_last_of_several_threads_puts_the_switch_back(switch: bool) -> None:
    first_in, second_out = threading.Event(), threading.Event()
    seen: list[bool] = []

    def first() -> None:
        with whole_images_only():
            first_in.set()
            second_out.wait(10)
            seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with whole_images_only():
        pass
    second_out.set()
    thread.join()
    assert seen == [False]
    assert switch is ImageFile.LOAD_TRUNCATED_IMAGES


def test_an_error_inside_puts_it_back_too(switch: bool) -> None:
    with pytest.raises(RuntimeError), whole_images_only():
        raise RuntimeError
    assert switch is ImageFile.LOAD_TRUNCATED_IMAGES
