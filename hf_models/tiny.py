"""Tiny random checkpoints with a complete processor, made offline in seconds: for demos and tests, never for safety figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
CORPUS = [
    "user assistant system Time 0.0s: Time 1.0s: What happens in this video? Is it harmful or safe?",
    "I can not help with that. Here is how the clip goes on. The person walks along the street and the sun is out.",
]
TEMPLATE = Path(__file__).parent / "templates" / "videollama3.jinja"
NOTE = "random weights: a tiny model made by `videosafety tiny`, for trying the pipeline; its figures say nothing about any real model"


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of a few hundred tokens with the special tokens of the Qwen2 family; encodes any text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(CORPUS * 20, trainers.BpeTrainer(vocab_size=370, initial_alphabet=alphabet, show_progress=False))
    bpe = json.loads(trained.to_str())["model"]
    parts: dict[str, Any] = {"vocab": bpe["vocab"], "merges": [tuple(merge) for merge in bpe["merges"]]}
    parts |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    tokenizer = Qwen2Tokenizer(**parts)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS})
    return tokenizer


def tiny_processor() -> VideoLlama3Processor:
    """Images at most 56x56 and videos at most 32 patches of 28x28: a few dozen visual tokens a request."""
    return VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4}, merge_size=1),
        video_processor=VideoLlama3VideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 32}, merge_size=2),
        tokenizer=tiny_tokenizer(),
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def tiny_config(tokenizer: PreTrainedTokenizerBase, hidden_size: int = 32, layers: int = 2) -> VideoLlama3Config:
    """Config of a VideoLlama3 of `layers` layers and width `hidden_size` (a multiple of 8), with a vision tower half as wide."""
    text: dict[str, Any] = {
        "model_type": "qwen2",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 384,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,  # tied and random, a model only repeats its last input token
        "initializer_range": 0.4,  # large enough that the answer depends on the prompt
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"hidden_size": hidden_size // 2, "intermediate_size": hidden_size, "num_hidden_layers": 2, "num_attention_heads": 2}
    placeholders: dict[str, Any] = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    }
    return VideoLlama3Config(text_config=text, vision_config=vision | {"patch_size": 14}, tie_word_embeddings=False, **placeholders)


def unreadable_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids whose text is neither letters nor a space before letters: suppressed when generating, so that answers show as words."""
    texts = {i: str(tokenizer.decode([i])) for i in range(len(tokenizer))}
    return [i for i, text in texts.items() if i != tokenizer.eos_token_id and not (text.isascii() and text.strip().isalpha())]


FAMILIES = ("videollama3",)


def build_tiny(out: Path, family: str = "videollama3", seed: int = 0, hidden_size: int = 32, layers: int = 2) -> Path:
    """Write a random checkpoint (safetensors) with its processor to the folder `out`, and return it.

    Raises:
        ValueError: unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: this version makes {', '.join(FAMILIES)}")
    processor = tiny_processor()
    torch.manual_seed(seed)
    config = tiny_config(processor.tokenizer, hidden_size, layers)
    config.note = NOTE
    model = VideoLlama3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.suppress_tokens = unreadable_tokens(processor.tokenizer)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out
