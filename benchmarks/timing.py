"""What benchmarks share: the time of one piece of work, whether a goal is met, and on what it was measured."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(work: Callable[[], Any], device: str) -> float:
    """CPU seconds; of a GPU seconds by the clock, until it has finished."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def met(quartiles: list[float], goal: float, at_least: bool) -> bool | None:
    """Whether a goal is met, None where it lies between the quartiles."""
    low, high = quartiles
    return None if low < goal < high else (low >= goal) if at_least else (high <= goal)


def hardware(device: str) -> str:
    """The device's name, and of a CPU the threads that torch uses."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
