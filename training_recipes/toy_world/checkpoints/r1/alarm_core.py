"""Alarm tokens for any transformers VLM: learned vectors, two heads and the mixin that hooks them in. Travels with the weights.

An alarm-token model is a VLM with two more tokens in its prompt, one after the visuals and one at the end of the first user turn. Their
embeddings are learned vectors of their own, and two linear heads read the backbone's last hidden state at their places: the logits that
the visuals and the text are harmful (VideoSafety-R1, arXiv 2505.16643, section 4). Nothing here names an architecture; a family adds a
config and a model class of a few lines. Without the tokens in its input a model computes exactly what its base does.
"""

# mypy: disable-error-code="attr-defined, call-arg, misc"
# A mixin's host class, which has what is missed here, is each family's own.

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

VISUAL_ALARM, TEXTUAL_ALARM = "<|visual_alarm|>", "<|textual_alarm|>"
UNLABELLED = -100  # label of a modality about which a row says nothing; 0 is safe, 1 harmful
AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")


def alarm_strings(per_modality: int = 1) -> tuple[list[str], list[str]]:
    """The (visual, textual) token strings in the order in which they stand in a prompt; the last of each is what its head reads."""

    def numbered(token: str) -> list[str]:
        return [token if n == 0 else token.replace("|>", f"_{n + 1}|>") for n in range(per_modality)]

    return numbered(VISUAL_ALARM), numbered(TEXTUAL_ALARM)


def token_ids(config) -> tuple[list[int], list[int]]:
    """The (visual, textual) token ids that a config names: K consecutive ones each, from its two first ids on.

    Raises:
        ValueError: the config names none; `videosafety build-alarm` makes one that does.
    """
    first, count = (config.visual_alarm_token_id, config.textual_alarm_token_id), config.alarm_tokens_per_modality
    if None in first:
        raise ValueError("the config has no visual_alarm_token_id and textual_alarm_token_id: make the model with videosafety build-alarm")
    visual, textual = ([start + n for n in range(count)] for start in first)
    if set(visual) & set(textual):
        raise ValueError(f"alarm token ids overlap: {visual} and {textual}")
    return visual, textual


class AlarmEmbedding(nn.Module):
    """The vectors (2K, hidden) that stand in for the alarm tokens' rows of the embedding matrix, visual first.

    A module of its own, so that FSDP and ZeRO gather it, PEFT can save it, and an optimiser can give it its own learning rate.
    """

    def __init__(self, ids: list[int], hidden_size: int) -> None:
        super().__init__()
        self.ids = list(ids)
        self.weight = nn.Parameter(torch.empty(len(ids), hidden_size))

    def forward(self, input_ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        # One `where` a token: no synchronisation, no shape that depends on data, and a zero gradient where the token is absent (a
        # missing one would stop DDP).
        for row, token in enumerate(self.ids):
            embeds = torch.where((input_ids == token).unsqueeze(-1), self.weight[row].to(embeds), embeds)
        return embeds


class AlarmHeads(nn.Module):
    """Two linear heads on the hidden states (batch, length, hidden) at the last visual and the last textual alarm token."""

    def __init__(self, visual_id: int, textual_id: int, hidden_size: int) -> None:
        super().__init__()
        self.ids = (visual_id, textual_id)
        self.visual = nn.Linear(hidden_size, 1)
        self.textual = nn.Linear(hidden_size, 1)

    def forward(self, input_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 2), visual and textual, in the heads' dtype; NaN where a row has no such token, its first place where several."""
        rows = torch.arange(input_ids.shape[0], device=hidden_states.device)
        logits = []
        # The heads keep their own precision under autocast: a BCE in bfloat16 has 8 bits.
        with torch.autocast(hidden_states.device.type, enabled=False):
            for token, head in zip(self.ids, (self.visual, self.textual), strict=True):
                found = (input_ids == token).to(hidden_states.device)
                states = hidden_states[rows, found.int().argmax(dim=-1)].to(head.weight.dtype)
                logits.append(head(states).masked_fill(~found.any(-1, keepdim=True), torch.nan))
        return torch.cat(logits, -1).float()


def alarm_loss(logits: torch.Tensor, labels: torch.Tensor, weights=(0.1, 0.1), num_items: torch.Tensor | None = None) -> torch.Tensor:
    """Σ over visual and textual of weight · Σ BCE / number of labelled rows (paper, section 4.2: λ = 0.1 each).

    Args:
        logits: (batch, 2), NaN where there is no token; such a row counts as unlabelled.
        labels: (batch, 2) of 0, 1 or UNLABELLED.
        num_items: (2,) labelled rows of the whole accumulation window over all ranks; of this batch where not given.

    Returns:
        A scalar, 0 with zero gradients where nothing is labelled.
    """
    labels = labels.to(logits.device)
    valid = (labels != UNLABELLED) & ~logits.isnan()
    targets = torch.where(valid, labels, 0).to(logits.dtype)
    bce = nn.functional.binary_cross_entropy_with_logits(torch.where(valid, logits, 0.0), targets, reduction="none")
    count = valid.sum(0) if num_items is None else num_items.to(logits.device)
    return ((bce * valid).sum(0) / count.clamp(min=1) * bce.new_tensor(weights)).sum()


_OUTPUTS: dict[type, type] = {}


def _with_alarm_fields(output: type) -> type:
    """`output` with fields alarm_logits, alarm_probs and alarm_loss. Only declared fields survive DDP's walk through an output."""
    if output not in _OUTPUTS:
        declared = {field.name for field in dataclasses.fields(output)}
        fields = [(n, "torch.Tensor | None", None) for n in ("loss", "alarm_logits", "alarm_probs", "alarm_loss") if n not in declared]
        _OUTPUTS[output] = dataclasses.make_dataclass(f"Alarm{output.__name__}", fields, bases=(output,))
    return _OUTPUTS[output]


def _alarm_forward(base_forward):
    """A `forward` that also takes `alarm_labels` and `num_alarm_items` and returns the alarm fields; its visible signature keeps every
    parameter of the base, because generate() and trainers read it."""

    @functools.wraps(base_forward)
    def forward(self, *args, alarm_labels=None, num_alarm_items=None, **kwargs):
        as_tuple = not kwargs.get("return_dict", self.config.return_dict)
        with self._listening() as heard:
            out = base_forward(self, *args, **kwargs | {"return_dict": True})
        fields, logits = dict(out.items()), heard[-1] if heard else None
        if logits is not None:
            fields |= {"alarm_logits": logits, "alarm_probs": logits.detach().sigmoid()}
        if alarm_labels is not None:
            if logits is None:
                raise ValueError("alarm_labels need input_ids of a whole prompt; there were none (inputs_embeds or a single token)")
            fields["alarm_loss"] = alarm_loss(logits, alarm_labels, self.config.alarm_loss_weights, num_alarm_items)
            fields["loss"] = fields["alarm_loss"] + (0.0 if fields.get("loss") is None else fields["loss"])
        out = _with_alarm_fields(type(out))(**fields)
        return out.to_tuple() if as_tuple else out

    signature = inspect.signature(base_forward)
    given = list(signature.parameters.values())
    named, rest = [p for p in given if p.kind is not p.VAR_KEYWORD], [p for p in given if p.kind is p.VAR_KEYWORD]
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("alarm_labels", "num_alarm_items")]
    forward.__signature__ = signature.replace(parameters=[*named, *ours, *rest])
    forward.is_alarm_forward = True
    return forward


class _Hook:
    """A forward hook that calls a method of its model, found anew at each call: PEFT swaps sub-modules, deepcopy swaps models.

    A copy made together with its model belongs to the copied model; a copy of the hooked module alone (PEFT's modules_to_save) stays with
    the model it came from. A bound method would drag a copy of the whole model along.
    """

    def __init__(self, model, method: str) -> None:
        self.model, self.method = model, method

    def __call__(self, module, args, kwargs, output):
        return getattr(self.model, self.method)(args, kwargs, output)

    def __deepcopy__(self, memo):
        return _Hook(memo.get(id(self.model), self.model), self.method)


class _Local(threading.local):
    """What a thread's running calls have heard; copies and pickles start empty."""

    def __init__(self) -> None:
        self.stack: list[list[torch.Tensor]] = []

    def __deepcopy__(self, memo):
        return _Local()

    def __reduce__(self):
        return _Local, ()


class AlarmModelMixin:
    """Stands left of a *ForConditionalGeneration class: `class AlarmX(AlarmModelMixin, XForConditionalGeneration, GenerationMixin)`.

    GenerationMixin is named again because transformers derives a new class at every load from remote code that does not name it.
    """

    _keep_in_fp32_modules_strict: Any = ("alarm_tokens", "alarm_heads")  # a few thousand numbers; steps of 1e-5 vanish in bfloat16

    def __init__(self, config, *args, **kwargs) -> None:
        visual, textual = token_ids(config)  # before gigabytes are set up for nothing
        super().__init__(config, *args, **kwargs)
        hidden = config.get_text_config().hidden_size
        self.alarm_tokens = AlarmEmbedding(visual + textual, hidden)
        self.alarm_heads = AlarmHeads(visual[-1], textual[-1], hidden)
        self.last_alarm_probs: torch.Tensor | None = None
        self._heard = _Local()
        self._alarm_handles: list[Any] = []
        self._hook_in()
        self.post_init()

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        kept = [vars(c).get("_keep_in_fp32_modules_strict") or () for c in cls.__mro__]
        cls._keep_in_fp32_modules_strict = set().union(*kept)
        if not getattr(cls.forward, "is_alarm_forward", False):
            cls.forward = _alarm_forward(cls.forward)

    # --- hooks -----------------------------------------------------------------------------------------------------------------------

    def _hook_in(self) -> None:
        for handle in self._alarm_handles:
            handle.remove()
        embedding, backbone = _Hook(self, "_replace_embeddings"), _Hook(self, "_read_states")
        self._alarm_handles = [
            self.get_input_embeddings().register_forward_hook(embedding, with_kwargs=True),
            self.base_model.register_forward_hook(backbone, with_kwargs=True),
        ]

    def set_input_embeddings(self, value) -> None:
        super().set_input_embeddings(value)
        if hasattr(self, "alarm_tokens"):  # resize_token_embeddings() brings a new module, without hooks
            self._hook_in()

    def _replace_embeddings(self, args, kwargs, output):
        return self.alarm_tokens(args[0] if args else kwargs["input"], output)

    def _read_states(self, args, kwargs, output) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if not self._heard.stack or input_ids is None or input_ids.shape[1] == 1:  # nobody listens, or a step of decoding
            return
        self._heard.stack[-1].append(self.alarm_heads(input_ids, output[0]))

    @contextlib.contextmanager
    def _listening(self):
        """Collect the alarm logits of every pass through the backbone in this thread; an outer listener hears them too."""
        heard: list[torch.Tensor] = []
        self._heard.stack.append(heard)
        try:
            yield heard
        finally:
            self._heard.stack.pop()
            if self._heard.stack:
                self._heard.stack[-1].extend(heard)

    # --- weights ---------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _init_weights(self, module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlarmEmbedding):
            # Of the paper's zeros, a first RMSNorm makes gradients a thousand times too large (1/sqrt(eps)); a mean is an ordinary word.
            words = self.get_input_embeddings().weight
            start = words.new_zeros(words.shape[1]) if self.config.alarm_init == "paper_init" else words.float().mean(0)
            init.copy_(module.weight, start.to(module.weight).expand_as(module.weight))
        elif isinstance(module, AlarmHeads):
            for head in (module.visual, module.textual):
                init.normal_(head.weight, mean=0.0, std=self.config.get_text_config().initializer_range)
                init.zeros_(head.bias)

    def save_pretrained(self, *args, **kwargs):
        """As in transformers; the config names this class for all of AUTO_CLASSES, and the code files are saved beside the weights."""
        place = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **dict.fromkeys(AUTO_CLASSES, place)}
        return super().save_pretrained(*args, **kwargs)

    # --- probabilities ---------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def alarm_probs(self, **inputs) -> torch.Tensor:
        """p(harmful) of the visuals and of the text, (batch, 2) float32 in [0, 1], from one prefill without the language-model head.

        NaN where a prompt has no such token. `inputs` are the processor's. Under FSDP2 it needs `register_fsdp_forward_method`.

        Raises:
            ValueError: no input_ids.
        """
        with self._listening() as heard:
            self.base_model(**{"use_cache": False, **inputs})
        if not heard:
            raise ValueError("alarm_probs needs input_ids of a whole prompt")
        return heard[-1].sigmoid()

    @torch.no_grad()
    def generate(self, *args, **kwargs):
        """As in transformers. `last_alarm_probs`, and `alarm_probs` of a dict output, hold (batch, 2) of the prompts."""
        with self._listening() as heard:
            out = super().generate(*args, **kwargs)
        prompts = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        self.last_alarm_probs = _of_prompts(heard, prompts)
        if isinstance(out, ModelOutput):
            out["alarm_probs"] = self.last_alarm_probs
        return out


def _of_prompts(heard: list[torch.Tensor], prompts: torch.Tensor | None) -> torch.Tensor | None:
    """One row a prompt from all passes of a generation: prefill may come in chunks, and beams repeat each prompt."""
    if not heard:
        return None
    logits = heard[0]
    for later in heard[1:]:
        if later.shape == logits.shape:
            logits = torch.where(logits.isnan(), later, logits)
    repeats = 1 if prompts is None else logits.shape[0] // prompts.shape[0]
    return logits[::repeats].sigmoid()
