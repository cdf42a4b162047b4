"""Tiny random checkpoints with a complete processor, made offline in seconds: for demos and tests, never for safety figures."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from videosafety.hf_models.build import build_alarm, check_empty, quiet
from videosafety.hf_models.families import FAMILIES, TEMPLATES, family_of
from videosafety.hf_models.tiny_parts import TINY

CORPUS = [
    "user assistant system Time 0.0s: Time 1.0s: What happens in this video? Is it harmful or safe?",
    "I can not help with that. Here is how the clip goes on. The person walks along the street and the sun is out.",
]
TEMPLATE = TEMPLATES / "videollama3.jinja"
NOTE = "random weights: a tiny model made by `videosafety tiny`, for trying the pipeline; its figures say nothing about any real model"


def tiny_tokenizer(family: str = "videollama3") -> PreTrainedTokenizerBase:
    """A byte-level BPE of a few hundred tokens with the special tokens of the family; encodes any text."""
    tiny = TINY[family]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(CORPUS * 20, trainers.BpeTrainer(vocab_size=370, initial_alphabet=alphabet, show_progress=False))
    bpe = json.loads(trained.to_str())["model"]
    parts: dict[str, Any] = {"vocab": bpe["vocab"], "merges": [tuple(merge) for merge in bpe["merges"]]}
    parts |= {"eos_token": tiny.eos, "pad_token": tiny.pad, "unk_token": None}
    tokenizer = Qwen2Tokenizer(**parts, extra_special_tokens=dict(tiny.names)) if tiny.names else Qwen2Tokenizer(**parts)
    tokenizer.add_special_tokens({"extra_special_tokens": list(tiny.tokens)})
    return tokenizer


def tiny_parts(family: str, hidden_size: int = 32, layers: int = 2) -> tuple[Any, Any]:
    """(config, processor) of the family: `layers` layers of width `hidden_size`, a multiple of 32, and a vision tower half as wide."""
    tokenizer = tiny_tokenizer(family)
    text: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 384,  # a few rows to spare, as real checkpoints have
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,  # tied and random, a model only repeats its last input token
        "initializer_range": 0.4,  # large enough that the answer depends on the prompt
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return TINY[family].parts(tokenizer, text, (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8"))


def unreadable_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids whose text is neither letters nor a space before letters: suppressed when generating, so that answers show as words."""
    texts = {i: str(tokenizer.decode([i])) for i in range(len(tokenizer))}
    return [i for i, text in texts.items() if i != tokenizer.eos_token_id and not (text.isascii() and text.strip().isalpha())]


def build_tiny(
    out: Path, family: str = "videollama3", seed: int = 0, hidden_size: int = 32, layers: int = 2, *, alarm: bool = True
) -> Path:
    """Write a random checkpoint (safetensors) with its processor to the folder `out`, and return it.

    alarm: with alarm tokens, whose code comes along and whose weights are as random as the others; else a plain one.

    Raises:
        ValueError: unknown family, or `out` is not empty and `alarm`.
    """
    if family not in FAMILIES:
        family_of("", family)
    if alarm:
        check_empty(out)
        with tempfile.TemporaryDirectory() as scratch:
            plain = build_tiny(Path(scratch) / f"tiny-{family}", family, seed, hidden_size, layers, alarm=False)
            return build_alarm(plain, out, family=family, seed=seed)
    config, processor = tiny_parts(family, hidden_size, layers)
    config.note = NOTE
    torch.manual_seed(seed)
    model = FAMILIES[family].base_model(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.suppress_tokens = unreadable_tokens(processor.tokenizer)
    with quiet():
        model.save_pretrained(out)
        processor.save_pretrained(out)
    return out
