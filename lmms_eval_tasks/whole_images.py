"""Only whole images count as images: lmms-eval tells Pillow to fill the missing part of a cut file with grey, and this tells it not to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ImageFile

_lock = threading.Lock()
_inside = 0
_before = False


@contextmanager
def whole_images_only() -> Iterator[None]:
    """While anybody is inside, Pillow raises OSError for a cut image. Threads may be inside together.

    The switch is one for the process, and lmms_eval.api.task turns it on when it is imported, for tasks that are not ours: the last to
    leave puts back what the first found.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _before
