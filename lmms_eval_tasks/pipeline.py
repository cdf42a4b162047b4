"""Batches for the model: planned so that rows of one video sit together, decoded and prepared ahead while the model generates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from PIL import Image

from videosafety.lmms_eval_tasks.video import Clip, MediaError, Sampling, load_image

BATCHES_AHEAD = 2


class Frames(Protocol):
    """What decodes: a `FrameCache`, or anything else with its `get`, which raises MediaError."""

    sampling: Sampling

    def get(self, path: str) -> Clip: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer. `messages` are chat messages whose media parts are placeholders; the media follow in order."""

    index: int  # place in the list that lmms-eval sent
    key: str  # identity in the journal
    messages: list[dict[str, Any]]
    videos: list[str]
    images: list[str | Image.Image]
    generation: dict[str, Any]
    media: str = ""  # identity of all media, for grouping

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of different kinds cannot share a batch: other media, or other generation settings."""
        return bool(self.videos), bool(self.images), tuple(sorted((k, str(v)) for k, v in self.generation.items()))

    @property
    def text_length(self) -> int:
        return sum(len(part.get("text", "")) for message in self.messages for part in message["content"])


@dataclass(slots=True)
class Loaded:
    """A request with its media decoded."""

    request: Request
    clips: list[Clip] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """What the model gets next: requests with decoded media, tensors ready, and those that cannot be shown to it, each with the reason."""

    loaded: list[Loaded]
    inputs: Any
    failed: list[tuple[Request, str]]


def plan(requests: list[Request], batch_size: int) -> list[list[Request]]:
    """The same batches for the same requests, whatever was done before: a resumed run then computes what the first would have.

    Rows of one video are neighbours (one decode, similar lengths), and within a kind prompts ascend in length to save padding.
    """
    groups: dict[tuple[Any, ...], list[Request]] = {}
    for request in requests:
        groups.setdefault(request.kind, []).append(request)
    batches = []
    for group in groups.values():
        group.sort(key=lambda r: (r.media, r.text_length, r.index))
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return batches


@contextmanager
def memory_errors() -> Iterator[None]:
    """Inside, memory that ran out on a CPU is a MemoryError: torch's own allocator raises a bare RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from None


def load(request: Request, cache: Frames) -> Loaded:
    """Decode a request's media. Raises MediaError, or MemoryError where they do not fit into memory."""
    budget = cache.sampling.max_pixels
    with memory_errors():
        return Loaded(request, [cache.get(video) for video in request.videos], [load_image(image, budget) for image in request.images])


def _parts(loaded: list[Loaded], to_inputs: Callable[[list[Loaded]], Any]) -> Iterator[Batch]:
    """A batch with its tensors; where the processor refuses it, or memory does not suffice, its halves: clips of unlike length that it
    cannot stack part ways, and a request that it refuses even alone (a clip too short for it, say) has failed, alone."""
    try:
        with memory_errors():
            inputs = to_inputs(loaded)
    except ValueError as error:
        problem = f"the processor refused it: {' '.join(str(error).split())}"
    except MemoryError as error:
        problem = f"out of memory while its tensors were made ({error}): set a lower max_pixels or max_frames"
    else:
        yield Batch(loaded, inputs, [])
        return
    if len(loaded) == 1:
        yield Batch([], None, [(loaded[0].request, problem)])
        return
    for half in (loaded[: len(loaded) // 2], loaded[len(loaded) // 2 :]):
        yield from _parts(half, to_inputs)


def prepared(
    batches: list[list[Request]],
    cache: Frames,
    to_inputs: Callable[[list[Loaded]], Any],
    workers: int,
) -> Iterator[Batch]:
    """Yield batches in order (or their parts, see `_parts`), with at most BATCHES_AHEAD in preparation while the caller works on one.

    `workers` threads decode; one thread makes tensors, because fast tokenizers must not be used from two threads at once.
    """
    decoders = ThreadPoolExecutor(workers, thread_name_prefix="videosafety-decode")
    assembler = ThreadPoolExecutor(1, thread_name_prefix="videosafety-prepare")

    def assemble(pairs: list[tuple[Request, Future[Loaded]]]) -> list[Batch]:
        loaded, failed = [], []
        for request, future in pairs:
            try:
                loaded.append(future.result())
            except MediaError as error:
                failed.append((request, str(error)))
            except MemoryError as error:
                failed.append((request, f"out of memory while its media were decoded ({error}): set a lower max_pixels or max_frames"))
        parts = list(_parts(loaded, to_inputs)) if loaded else []
        return [Batch([], None, failed), *parts] if failed else parts

    def submit(batch: list[Request]) -> Future[list[Batch]]:
        return assembler.submit(assemble, [(request, decoders.submit(load, request, cache)) for request in batch])

    rest = iter(batches)
    ahead: deque[Future[list[Batch]]] = deque(submit(batch) for batch in islice(rest, BATCHES_AHEAD))
    try:
        while ahead:
            ready = ahead.popleft().result()
            ahead.extend(submit(batch) for batch in islice(rest, 1))
            yield from ready
    finally:
        assembler.shutdown(wait=False, cancel_futures=True)
        decoders.shutdown(wait=False, cancel_futures=True)
