"""Memory that runs out: a batch is halved, a row too large fails alone, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from test_model import Rows, ask, load, rows  # noqa: F401
from videosafety.lmms_eval_tasks.model import VideoSafetyR1

NO_CPU_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


class TestMemory:
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), NO_CPU_MEMORY])
    def test_a_batch_too_large_is_halved(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        expected = ask(load(batch_size=1, resume=False), rows[:1] * 5)
        model, sizes = load(batch_size=5, resume=False), []
        original = model._model.generate

        def generate(**inputs: Any) -> torch.Tensor:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise error
            return original(**inputs)

        monkeypatch.setattr(model._model, "generate", generate)
        assert ask(model, rows[:1] * 5) == expected
        assert sizes == [5, 2, 2, 1]
        sizes.clear()
        ask(model, [rows[1]] * 4)
        assert max(sizes) == 2, "the size that worked is kept for the rest of the run"

    @pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 GiB"), NO_CPU_MEMORY])
    @pytest.mark.parametrize("place", ["media", "tensors"])
    def test_memory_that_ends_before_the_model_costs_its_row_only(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
    ) -> None:
        wanted = ask(load(resume=False), rows)
        model = load(batch_size=4, resume=False)

        if place == "media":
            get = model.frames.get

            def short(path: str) -> Any:
                if path == rows[1]["video"]:
                    raise error
                return get(path)

            monkeypatch.setattr(model.frames, "get", short)
        else:
            processor = type(model.processor)
            original = processor.__call__

            def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
                if any("long is the street" in text for text in kwargs["text"]):
                    raise error
                return original(self, *args, **kwargs)

            monkeypatch.setattr(processor, "__call__", refuse)
        found = ask(model, rows)
        assert found[1].startswith("[VIDEOSAFETY_UNSCORED media_error] out of memory while its ")
        assert found[1].endswith("set a lower max_pixels or max_frames")
        assert [found[i] for i in (0, 2, 3, 4, 5)] == [wanted[i] for i in (0, 2, 3, 4, 5)]

    def test_other_errors_of_torch_are_not_taken_for_memory(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load()

        def generate(**_: Any) -> None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(model._model, "generate", generate)
        with pytest.raises(RuntimeError, match="shapes"):
            ask(model, rows[2:3])

    def test_one_row_too_large_is_marked_and_the_rest_answered(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load(batch_size=2)
        longest = len(model.tokenizer(rows[5]["query"])["input_ids"])
        original = model._model.generate

        def generate(**inputs: Any) -> torch.Tensor:
            if inputs["input_ids"].shape[1] > longest:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return original(**inputs)

        monkeypatch.setattr(model._model, "generate", generate)
        answers = ask(model, [rows[2], rows[5]])
        assert answers[1].startswith("[VIDEOSAFETY_UNSCORED generation_failed] out of memory on this one request (CUDA out of memory")
        assert answers[0]
        assert not answers[0].startswith("[")
