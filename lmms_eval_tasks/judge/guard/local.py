"""Guard models on this machine: transformers, greedy, in batches collected from concurrent requests; the model is loaded on first use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from ...journal import checkpoint_identity, hub_commit
from ..verdict import Reason
from .base import Family, GuardError, Message, Prompt, Reading
from .media import pictured, show


class LocalEngine:
    """Runs a guard model in a thread of its own. Requests that arrive within `wait_s` seconds share batches of at most `batch` prompts.

    bfloat16 on a GPU, float32 on a CPU. Weights come as safetensors or not at all; remote code is never run.
    """

    def __init__(self, model_id: str, revision: str | None, family: Family, batch: int = 16, wait_s: float = 0.005) -> None:
        self.model_id, self.revision, self.family, self.batch, self.wait_s = model_id, revision, family, batch, wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guard")
        self._waiting: list[tuple[Prompt, asyncio.Future[Reading]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._broken: GuardError | None = None
        self._identity: list[Any] | None = None
        self._model: Any = None
        self._processor: Any = None
        self._tokenizer: Any = None

    def identity(self) -> list[Any]:
        """The files of a folder, else the Hub commit, as at the first call. Where neither can be told the model is not loaded either."""
        if self._identity is None:
            commit = None
            try:
                commit = hub_commit(self.model_id, self.revision)
            except OSError as error:
                self._broken = self._cannot_load(error)
            self._identity = checkpoint_identity(self.model_id, commit)
        return self._identity

    async def cut(self, text: str) -> tuple[str, str]:
        """The text up to the family's `answer_tokens`, and a note where something was cut off. Raises GuardError as `read`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._cut, text)

    async def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """What the model says to each prompt.

        Raises:
            GuardError: judge_failed when the model cannot be loaded, memory runs out, or a prompt is too long for the model;
                media_error when a picture cannot be read.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Reading]] = [loop.create_future() for _ in prompts]
        self._waiting += zip(prompts, futures, strict=True)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return list(await asyncio.gather(*futures))

    async def close(self) -> None:
        """Give the thread and the model back; the engine is of no use afterwards."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._model = None

    async def _work(self) -> None:
        await asyncio.sleep(self.wait_s)
        while self._waiting:
            kind = pictured(self._waiting[0][0])  # processors do not take prompts with and without pictures in one batch
            now: list[tuple[Prompt, asyncio.Future[Reading]]] = []
            later: list[tuple[Prompt, asyncio.Future[Reading]]] = []
            for one in self._waiting:
                (now if len(now) < self.batch and pictured(one[0]) == kind else later).append(one)
            self._waiting = later
            run = asyncio.get_running_loop().run_in_executor(self._thread, self._run, [prompt for prompt, _ in now])
            await asyncio.wait([run])
            error = run.exception()
            results = [error] * len(now) if error else run.result()
            for (_, future), result in zip(now, results, strict=True):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(result, Reading):
                    future.set_result(result)
                else:
                    future.set_exception(result)

    def _load(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._model is not None:
            return
        options = {"revision": self.revision} if self.revision else {}
        on_gpu = torch.cuda.is_available()
        kind = AutoModelForImageTextToText if self.family.sees else AutoModelForCausalLM
        dtype = torch.bfloat16 if on_gpu else torch.float32
        try:
            self._processor = (AutoProcessor if self.family.sees else AutoTokenizer).from_pretrained(self.model_id, **options)
            self._model = kind.from_pretrained(
                self.model_id, dtype=dtype, device_map="auto" if on_gpu else "cpu", use_safetensors=True, **options
            ).eval()
        except (OSError, ValueError, ImportError, torch.OutOfMemoryError) as error:
            self._broken = self._cannot_load(error)
            raise self._broken from error
        self._tokenizer = self._processor.tokenizer if self.family.sees else self._processor
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        spelled = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))]) if self.family.words else []
        self._ids = {word: [i for i, text in enumerate(spelled) if text.strip() == word] for word in self.family.words}

    def _cannot_load(self, error: Exception) -> GuardError:
        told = str(error).strip() or type(error).__name__
        return GuardError(Reason.JUDGE_FAILED, f"cannot load {self.model_id}: {told.splitlines()[0]}")

    def _cut(self, text: str) -> tuple[str, str]:
        self._load()
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= self.family.answer_tokens:
            return text, ""
        return self._tokenizer.decode(ids[: self.family.answer_tokens]), f"answer cut from {len(ids)} to {self.family.answer_tokens} tokens"

    def _encode(self, prompts: Sequence[Prompt]) -> Any:
        """Token ids and, for models that see, pixels, left-padded. A prompt that writes its own first token gets no second one."""
        images: list[list[Image.Image]] = []
        texts: list[str] = []
        for prompt in prompts:
            seen: list[Image.Image] = []

            def placeholder(picture: Image.Image, seen: list[Image.Image] = seen) -> Message:
                seen.append(picture)
                return {"type": "image"}

            shown = show(prompt, placeholder)
            chat = (
                shown if isinstance(shown, str) else self._processor.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
            )
            texts.append(chat)
            images.append(seen)
        start = self._tokenizer.bos_token
        special = isinstance(prompts[0], str) and not (start and texts[0].startswith(start))
        options = {"padding": True, "return_tensors": "pt", "add_special_tokens": special}
        if any(images):
            return self._processor(text=texts, images=images, **options)
        return self._tokenizer(texts, **options)

    def _run(self, prompts: Sequence[Prompt]) -> list[Reading | GuardError]:
        """One result a prompt. A batch that fails is halved until only those prompts fail that must."""
        try:
            return [*self._batch(prompts)]
        except GuardError as error:
            if len(prompts) == 1 or self._broken:
                return [error] * len(prompts)
        middle = len(prompts) // 2
        return self._run(prompts[:middle]) + self._run(prompts[middle:])

    def _batch(self, prompts: Sequence[Prompt]) -> list[Reading]:
        self._load()
        encoded = self._encode(prompts).to(self._model.device)
        length = encoded["input_ids"].shape[1]
        if self._limit and length + self.family.max_tokens > self._limit:
            raise GuardError(Reason.JUDGE_FAILED, f"a prompt of {length} tokens is too long for {self.model_id} ({self._limit})")
        try:
            return self._generate(encoded, length)
        except torch.OutOfMemoryError as error:
            raise GuardError(Reason.JUDGE_FAILED, f"out of memory with {len(prompts)} prompts of {length} tokens") from error

    def _generate(self, encoded: Any, length: int) -> list[Reading]:
        with torch.inference_mode():
            out = self._model.generate(
                **encoded,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=self.family.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=bool(self.family.words),
            )
        new = out.sequences[:, length:]
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Reading(text, self._first(new[row], out.logits, row)) for row, text in enumerate(texts)]

    def _first(self, ids: torch.Tensor, logits: Sequence[torch.Tensor] | None, row: int) -> dict[str, float]:
        """Probability of each of the family's words where the first visible token stands; empty if there is none."""
        for step, token in enumerate(ids):
            if logits is not None and self._tokenizer.decode([int(token)], skip_special_tokens=True).strip():
                chances = logits[step][row].float().softmax(-1)
                return {word: float(chances[ids].sum()) for word, ids in self._ids.items()}
        return {}
