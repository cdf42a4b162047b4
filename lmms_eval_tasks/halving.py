"""Batches that memory does not hold: halved until it does; a row that is too large even alone is lost, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from loguru import logger

from videosafety.lmms_eval_tasks.pipeline import Loaded, Request, memory_errors

T = TypeVar("T")


class Halving:
    """How many rows a model takes at once: `size` to begin with, and fewer for good where memory runs out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self, loaded: list[Loaded], inputs: Any, work: Callable[[list[Loaded], Any], list[T]]
    ) -> tuple[list[tuple[Request, T]], list[tuple[Request, str]]]:
        """(what `work` gave for each request, in order; the requests for which memory did not suffice even alone, each with the reason).

        Args:
            inputs: the tensors of all of `loaded`, or None. work: from some rows and their tensors, None where these are to be made anew,
                to one result a row.
        """
        finished: list[tuple[Request, T]] = []
        lost: list[tuple[Request, str]] = []
        queue = [(loaded, inputs)] if loaded else []
        while queue:
            part, ready = queue.pop(0)
            if len(part) > self.size:
                queue[:0] = [(part[: self.size], None), (part[self.size :], None)]
                continue
            try:
                with memory_errors():
                    results = work(part, ready)
            except (torch.OutOfMemoryError, MemoryError) as error:
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
            else:
                finished += [(item.request, result) for item, result in zip(part, results, strict=True)]
                continue
            # Outside the handler: while the exception lives, its frames keep the failed batch's tensors alive.
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            if len(part) == 1:
                lost.append((part[0].request, f"out of memory on this one request ({message})"))
            else:
                self.size = max(1, len(part) // 2)
                logger.warning(f"out of memory with {len(part)} prompts at once: going on with {self.size}")
                queue.insert(0, (part, None))
        return finished, lost
