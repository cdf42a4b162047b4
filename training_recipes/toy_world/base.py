"""The toy world's base model: a VideoLlama3 of half a million weights with a tokenizer of whole words, before any training."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlama3Config,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from videosafety.hf_models.families import TEMPLATES
from videosafety.lmms_eval_tasks.toy_world import world
from videosafety.lmms_eval_tasks.toy_world.draw import SIDE

EOS, PAD, UNKNOWN = "<|im_end|>", "<|endoftext|>", "<|unknown|>"
SPECIAL = (PAD, "<|im_start|>", EOS, UNKNOWN, "<|image_pad|>", "<|video_pad|>")
SPARE = 8  # rows of the embedding matrix that no word has, as real checkpoints have them: alarm tokens move in
# A tag, the time stamp of a frame, a word, or one other sign.
WORDS = r"</?[A-Za-z]+>|\d+\.\d+s:|\w+|[^\w\s]"


def vocabulary() -> list[str]:
    """Every word that the world and the chat template can write, in a fixed order."""
    fixed = "user assistant system Time 0.0s: 1.0s: 2.0s: , . ? : 0 1 i see asked for what is shown harmful safe to the describe clip"
    tags = " ".join(f"<{tag}> </{tag}>" for tag in ("think", "answer", "vidType", "textType"))
    words = world.SHAPES + world.COLOURS + world.MOTIONS + world.GROUNDS + world.COUNTS + world.TOOLS
    clip = world.clips(held_out=False)[0]
    verbs, nouns = world.ROUGH + world.GENTLE, world.LIVING + world.THINGS
    asks = [ask for held_out in (False, True) for ask in world.requests(verbs, nouns, held_out)]
    texts = [fixed, tags, *words, world.describe(clip), *(text for pair in world.QUESTIONS.values() for text in pair)]
    texts += [text for ask in (*asks, *world.SHOWN) for text in (ask.query, world.helpful(clip, ask), world.refusal(clip, ask))]
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; what is no word of the world becomes UNKNOWN."""
    words = {word: n for n, word in enumerate((*SPECIAL, *vocabulary()))}
    inner = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, padding_side="left")
    found.add_special_tokens({"extra_special_tokens": list(SPECIAL)})
    return found


def processor() -> VideoLlama3Processor:
    """VideoLlama3's own, for frames of the world's size: four visual tokens a frame, fewer where nothing moves."""
    pixels = {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    return VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(size=pixels, merge_size=1),
        video_processor=VideoLlama3VideoProcessor(size=pixels, merge_size=2),
        tokenizer=tokenizer(),
        chat_template=(TEMPLATES / "videollama3.jinja").read_text(encoding="utf-8"),
    )


def config(words: Any, hidden: int = 96, layers: int = 3, vision_hidden: int = 64, vision_layers: int = 2) -> VideoLlama3Config:
    """The architecture, for a tokenizer."""
    text = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(words) + SPARE,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {"hidden_size": vision_hidden, "intermediate_size": 2 * vision_hidden, "num_hidden_layers": vision_layers}
    ids = {name: words.convert_tokens_to_ids(f"<|{name.removesuffix('_token_id')}_pad|>") for name in ("image_token_id", "video_token_id")}
    return VideoLlama3Config(
        text_config=text,
        vision_config=vision | {"num_attention_heads": 4, "patch_size": 14, "initializer_range": 0.05},
        tie_word_embeddings=False,
        **ids,
    )
