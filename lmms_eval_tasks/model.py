"""`--model videosafety_r1`: any Hugging Face image-text-to-text model in lmms-eval, with video, images and text, batched and resumable."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import re
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import torch
import transformers
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from videosafety.hf_models.calibrate import load_calibration
from videosafety.hf_models.prompts import on_model, shown
from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.alarm import Answer, facts
from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.halving import Halving
from videosafety.lmms_eval_tasks.inputs import model_inputs
from videosafety.lmms_eval_tasks.journal import Journal, checkpoint_identity, digest, hub_commit, media_identity, numbered
from videosafety.lmms_eval_tasks.judge.verdict import Reason
from videosafety.lmms_eval_tasks.pipeline import Batch, Loaded, Request, plan, prepared
from videosafety.lmms_eval_tasks.video import FrameCache, Sampling, backend_problem

# What transformers' generate() takes from a task's generation_kwargs. `until` is applied afterwards, on text.
GENERATION_KEYS = {"max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty"}

# A chat template that ends the prompt inside thinking, as R1's does. The judge must see the tag, or it takes the thoughts for the answer.
THINKING_OPENED = re.compile(r"<think(?:ing)?>\s*\Z")
PROMPT_END = 16  # tokens: more than the tag and the white space after it have, even spelt out in bytes


class VideoSafetyR1(lmms):
    """A Hugging Face image-text-to-text model, with or without alarm tokens.

    Args:
        pretrained: Hub id or local folder. revision: commit, tag or branch of a Hub id.
        trust_remote_code: run the repository's own code; for a Hub id only together with `revision`.
        dtype: torch dtype name; by default bfloat16 on a GPU and float32 on a CPU. attn_implementation: as in transformers.
        device: `auto` takes this rank's GPU, or the CPU. device_map: as in transformers, for a model spread over several GPUs.
        batch_size: prompts a batch; halved when memory runs out.
        fps, max_frames, max_pixels: which frames the model sees, and at how many pixels each (see `video.Sampling`).
        video_backend: pyav, torchcodec or decord. workers: threads that decode ahead.
        system_prompt: put before every conversation. resume: take finished answers from the journal of an earlier, killed run.
        calibration: file of `videosafety guard calibrate`, with the thresholds above which an alarm model's row is flagged; 0.5 without.

    Raises:
        ValueError: unknown or contradictory arguments, or a video backend that does not work here.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        device: str | None = "auto",
        device_map: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        fps: float = 1.0,
        max_frames: int = 180,
        max_pixels: int | None = None,
        video_backend: str = "pyav",
        workers: int = 2,
        system_prompt: str | None = None,
        resume: bool = True,
        calibration: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        _refuse_unknown(unknown)
        if not pretrained:
            raise ValueError("videosafety_r1 needs --model_args pretrained=<Hub id or folder>")
        local = Path(pretrained).is_dir()
        if trust_remote_code and not local and revision is None:
            raise ValueError(f"trust_remote_code=True runs code from {pretrained}: pin it with revision=<commit>")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if problem := backend_problem(video_backend):
            raise ValueError(problem)

        self.calibration = load_calibration(Path(calibration) if calibration else None)
        self.accelerator = Accelerator()
        if torch.distributed.is_initialized():  # asked here: on CPU, accelerate does not always know of the process group
            self._rank, self._world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._device = self.accelerator.device if device in (None, "auto", "cuda") else torch.device(str(device))
        dtype = dtype or ("bfloat16" if self._device.type == "cuda" else "float32")
        revision = None if revision is None else str(revision)
        commit = hub_commit(pretrained, revision)
        # A branch may move between two downloads: code, processor and weights are all of one commit.
        source: dict[str, Any] = {"revision": commit or revision, "trust_remote_code": trust_remote_code}
        if trust_remote_code:
            source["code_revision"] = source["revision"]
        self.processor = AutoProcessor.from_pretrained(pretrained, **source)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"{pretrained} has no chat template: a base model cannot be asked questions; use an instruct model")
        loading = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map}
        model = _auto_class(pretrained, source).from_pretrained(pretrained, **source, **{k: v for k, v in loading.items() if v is not None})
        self._model = (model if device_map else model.to(self._device)).eval()
        if device_map:
            self._device = self._model.device

        self._halving = Halving(min(int(batch_size), int(max_batch_size)) if max_batch_size else int(batch_size))
        self.workers, self.system_prompt = int(workers), system_prompt
        sampling = Sampling(float(fps), int(max_frames), None if max_pixels is None else int(max_pixels))
        self.frames = FrameCache(cache_dir() / "frames", sampling, video_backend)
        self.settings: dict[str, Any] = {
            "pretrained": str(pretrained),
            "revision": revision,
            "commit": commit,
            "trust_remote_code": trust_remote_code,
            "dtype": dtype,
            "attn_implementation": getattr(self._model.config, "_attn_implementation", attn_implementation),
            "fps": sampling.fps,
            "max_frames": sampling.max_frames,
            "max_pixels": sampling.max_pixels,
            "video_backend": video_backend,
            "system_prompt": system_prompt,
            "transformers": transformers.__version__,
            "av": av.__version__,
            "videosafety": importlib.metadata.version("videosafety"),
        }
        # What an answer depends on: not the calibration, which is applied to what the journal keeps.
        identity = digest([checkpoint_identity(pretrained, commit), self.settings])
        self.journal = Journal(cache_dir() / "journal" / identity[:16], resume)
        run.note(
            "model",
            self.settings
            | {
                "architecture": type(self._model).__name__,
                "parameters": self._model.num_parameters(),
                "device": str(self._device),
                "hardware": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU",
                "batch_size": self._halving.size,
                "world_size": self._world_size,
                "note": getattr(self._model.config, "note", None),
                "calibration": asdict(self.calibration) if hasattr(self._model, "alarm_probs") else None,
            },
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> VideoSafetyR1:
        """As lmms-eval calls it; what stands in --model_args wins over the command line's own flag."""
        flags = {k: v for k, v in (additional_config or {}).items() if v is not None}
        return cls(**flags | simple_parse_args_string(arg_string))

    @property
    def model(self) -> torch.nn.Module:
        return self._model

    @property
    def device(self) -> torch.device:
        return self._device

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("videosafety_r1 generates answers; it has no loglikelihood tasks")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("videosafety_r1 answers single turns; it has no multi-round tasks")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests. What could not be answered comes back as a marked string that no judge scores."""
        answers: dict[int, GenerationResult] = {}
        wanted = [i for i, request in enumerate(requests) if not (request.metadata or {}).get("__padding_only__")]
        asked = self._requests([requests[i] for i in wanted], wanted)
        tasks = {i: requests[i].args[4] for i in wanted}
        todo = []
        for batch in plan(asked, self._halving.size):
            kept = [r for r in batch if r.key in self.journal.answers]
            answers |= {r.index: self._result(r, self.journal.answers[r.key], tasks[r.index]) for r in kept}
            todo.append([r for r in batch if r.index not in answers])
        todo = [batch for batch in todo if batch]
        resumed, failed, started = len(answers), 0, perf_counter()
        cut = sum(self.journal.answers[r.key].get("cut", False) for r in asked if r.index in answers)

        bar = tqdm(total=len(asked), initial=resumed, desc="Answering", unit="row", disable=self._rank != 0)
        for ready in prepared(todo, self.frames, lambda loaded: model_inputs(self.processor, loaded), self.workers):
            finished, lost = self._answer(ready)
            self.journal.write(finished)
            entries = {entry["index"]: entry for entry in finished}
            answered = [item.request for item in ready.loaded if item.request.index in entries]
            answers |= {r.index: self._result(r, entries[r.index], tasks[r.index]) for r in answered}
            for request, message in ready.failed:
                reason = Reason.MEDIA_ERROR if request.media else Reason.GENERATION_FAILED
                answers[request.index] = _failure(reason, message, tasks[request.index])
            answers |= {r.index: _failure(Reason.GENERATION_FAILED, message, tasks[r.index]) for r, message in lost}
            failed += len(ready.failed) + len(lost)
            cut += sum(entry.get("cut", False) for entry in finished)
            bar.update(len(ready.failed) + len(lost) + len(finished))
        bar.close()

        seconds = perf_counter() - started
        tokens = sum(a.token_counts.output_tokens or 0 for i, a in answers.items() if a.token_counts)
        if todo:
            speed = {"requests_per_s": (len(asked) - resumed) / seconds, "videos_decoded": self.frames.decodes}
            log_metrics(total_gen_tokens=tokens, total_elapsed_time=seconds, avg_speed=tokens / seconds, additional_metrics=speed)
        logger.info(
            f"videosafety_r1: {len(asked)} answers: {resumed} from the journal, {len(asked) - resumed - failed} generated, {failed} failed"
            f", {cut} cut at the token limit in {seconds:.1f} s; {self.frames.decodes} videos decoded"
        )
        return [answers.get(i, GenerationResult("")) for i in range(len(requests))]  # padding rows of another rank's share stay empty

    # --- from lmms-eval's requests to ours -------------------------------------------------------------------------------------------

    def _requests(self, instances: list[Instance], indices: list[int]) -> list[Request]:
        parts = []
        for instance in instances:
            _, doc_to_messages, generation, doc_id, task, split = instance.args
            chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            images, videos, audios = chat.extract_media()
            if audios:
                raise ValueError(f"task {task}: videosafety_r1 takes video, images and text, but row {doc_id} has audio")
            generation = {k: v for k, v in generation.items() if k in GENERATION_KEYS or k == "until"}  # a copy: lmms-eval hashes its own
            parts.append(
                (self._messages(chat), [str(v) for v in videos], images, generation, [media_identity(m) for m in [*videos, *images]])
            )
        seed = torch.initial_seed()
        keys = numbered([digest([messages, media, gen, seed if gen.get("do_sample") else None]) for messages, _, _, gen, media in parts])
        return [
            Request(index, key, messages, videos, images, gen, digest(media) if media else "")
            for index, key, (messages, videos, images, gen, media) in zip(indices, keys, parts, strict=True)
        ]

    def _messages(self, chat: ChatMessages) -> list[dict[str, Any]]:
        messages = [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}] if self.system_prompt else []
        for message in chat.messages:
            content = [{"type": "text", "text": part.text} if part.type == "text" else {"type": part.type} for part in message.content]
            messages.append({"role": message.role, "content": content})
        return messages

    # --- generating -----------------------------------------------------------------------------------------------------------------

    def _answer(self, batch: Batch) -> tuple[list[dict[str, Any]], list[tuple[Request, str]]]:
        """Journal entries of a batch, and the requests for which memory did not suffice even alone."""

        def work(part: list[Loaded], inputs: Any) -> list[dict[str, Any]]:
            return self._generate(part, model_inputs(self.processor, part) if inputs is None else inputs)

        finished, lost = self._halving.run(batch.loaded, batch.inputs, work)
        return [entry for _, entry in finished], lost

    def _generate(self, loaded: list[Loaded], inputs: Any) -> list[dict[str, Any]]:
        generation = dict(loaded[0].request.generation)
        stops = generation.pop("until", None) or []
        if not generation.get("do_sample"):  # greedy: transformers warns about every sampling setting it is then given
            generation = {k: v for k, v in generation.items() if k not in ("temperature", "top_p", "top_k")}
        inputs = on_model(inputs, self._model)
        limit = generation.setdefault("max_new_tokens", 1024)
        with torch.inference_mode():
            output = self._model.generate(**inputs, **generation)
        alarms = _alarms(self._model, inputs["input_ids"])
        prompt = inputs["input_ids"].shape[1]
        ends = self.tokenizer.batch_decode(inputs["input_ids"][:, -PROMPT_END:])
        eos = self._model.generation_config.eos_token_id
        ends_answer = set(eos if isinstance(eos, list) else [eos])
        entries = []
        for item, mask, row, end, alarm in zip(loaded, inputs["attention_mask"], output[:, prompt:], ends, alarms, strict=True):
            whole = text = self.tokenizer.decode(row, skip_special_tokens=True)
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            cut = text == whole and len(row) >= limit and not any(token in ends_answer for token in row.tolist())
            text = f"{opened[0]}{text}" if (opened := THINKING_OPENED.search(end)) else text
            counts = {"input_tokens": int(mask.sum()), "output_tokens": int((row != self.tokenizer.pad_token_id).sum())}
            entry = {"key": item.request.key, "index": item.request.index, "text": text, "alarm": alarm, **counts}
            entries.append(entry | ({"cut": True} if cut else {}))
        return entries

    def _result(self, request: Request, entry: dict[str, Any], task: str) -> GenerationResult:
        """A journal entry as lmms-eval takes it: the text knows its task and, from an alarm model, its probabilities."""
        alarm = None
        if entry.get("alarm") is not None:
            alarm = facts(entry["alarm"]["probabilities"], shown=entry["alarm"]["shown"])
            alarm["flagged"] = self.calibration.flagged(alarm["visual"], alarm["textual"])
        return GenerationResult(
            Answer(entry["text"], task, alarm, entry.get("cut", False)), TokenCounts(entry["input_tokens"], entry["output_tokens"])
        )


def _alarms(model: Any, input_ids: torch.Tensor) -> list[dict[str, Any] | None]:
    """Of each prompt what an alarm model's last generate() said, None for a token that was not there, and whether the visual head saw
    anything; None a row for other models."""
    found = getattr(model, "last_alarm_probs", None)
    if found is None:
        return [None] * len(input_ids)
    pairs = [[None if p != p else p for p in pair] for pair in found.tolist()]
    return [{"probabilities": pair, "shown": seen} for pair, seen in zip(pairs, shown(model.config, input_ids), strict=True)]


def _refuse_unknown(unknown: dict[str, Any]) -> None:
    if not unknown:
        return
    known = [p for p in inspect.signature(VideoSafetyR1.__init__).parameters if p not in ("self", "unknown")]
    hints = [f"{name} (did you mean {close[0]}?)" if (close := difflib.get_close_matches(name, known, 1)) else name for name in unknown]
    raise ValueError(f"videosafety_r1 does not know the model_args {', '.join(hints)}; it takes: {', '.join(known)}")


def _auto_class(pretrained: str, source: dict[str, Any]) -> Any:
    """AutoModelForImageTextToText, or AutoModelForCausalLM for remote code that names only that one."""
    auto_map = getattr(AutoConfig.from_pretrained(pretrained, **source), "auto_map", None) or {}
    only_causal = "AutoModelForCausalLM" in auto_map and "AutoModelForImageTextToText" not in auto_map
    return AutoModelForCausalLM if only_causal else AutoModelForImageTextToText


def _failure(reason: Reason, message: str, task: str) -> GenerationResult:
    return GenerationResult(Answer(f"[VIDEOSAFETY_UNSCORED {reason.value}] {message}", task))
