"""What tiny models are made of: for each family its special tokens, a config and a processor. Real architectures, a few visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    VideoLlama3Config,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

Parts = Callable[[Any, dict[str, Any], str], tuple[Any, Any]]
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = (*CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PADS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
# Pixels of a visual token of VideoLlama3 and Qwen2.5-VL (patches of 14, four to a token), of Qwen3-VL (patches of 16), of a whole picture.
TOKEN, TOKEN3, PICTURE = 28 * 28, 32 * 32, {"height": 28, "width": 28}


@dataclass(frozen=True, slots=True)
class Tiny:
    """A family's tiny model. tokens: its special tokens; eos, pad: two of them; names: special tokens that its processor asks for by name.

    parts: from a tokenizer, the fields of a text config and a chat template to (config, processor).
    """

    parts: Parts
    tokens: tuple[str, ...]
    eos: str = "<|im_end|>"
    pad: str = "<|endoftext|>"
    names: tuple[tuple[str, str], ...] = ()


def _tower(text: dict[str, Any]) -> dict[str, Any]:
    """A vision tower half as wide as the language model."""
    width = text["hidden_size"]
    return {"hidden_size": width // 2, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}


def _ids(tokenizer: Any, tokens: dict[str, str]) -> dict[str, Any]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def videollama3(tokenizer: Any, text: dict[str, Any], template: str) -> tuple[Any, Any]:
    config = VideoLlama3Config(
        text_config=text | {"model_type": "qwen2"},
        vision_config=_tower(text) | {"patch_size": 14},
        tie_word_embeddings=False,
        **_ids(tokenizer, PADS),
    )
    processor = VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(size={"shortest_edge": TOKEN, "longest_edge": 4 * TOKEN}, merge_size=1),
        video_processor=VideoLlama3VideoProcessor(size={"shortest_edge": TOKEN, "longest_edge": 32 * TOKEN}, merge_size=2),
        tokenizer=tokenizer,
        chat_template=template,
    )
    return config, processor


def qwen2_5_vl(tokenizer: Any, text: dict[str, Any], template: str) -> tuple[Any, Any]:
    width = text["hidden_size"]
    tower = {"depth": 2, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_scaling": {"type": "mrope", "mrope_section": _thirds(text)}},
        vision_config=tower | {"out_hidden_size": width},
        tie_word_embeddings=False,
        **_ids(tokenizer, PADS | {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": TOKEN, "longest_edge": 4 * TOKEN}),
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": TOKEN, "longest_edge": 8 * TOKEN}),
        tokenizer=tokenizer,
        chat_template=template,
    )
    return config, processor


def _thirds(text: dict[str, Any]) -> list[int]:
    """How many frequencies of a rotary head go to time, height and width: half of the head's size in all."""
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    return [half - 2 * (half // 3), half // 3, half // 3]


def qwen3_vl(tokenizer: Any, text: dict[str, Any], template: str) -> tuple[Any, Any]:
    width = text["hidden_size"]
    tower = {"depth": 2, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "num_position_embeddings": 16}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": _thirds(text), "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=text | {"head_dim": width // text["num_attention_heads"], "rope_parameters": rotary},
        vision_config=tower | {"out_hidden_size": width, "deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=False,
        **_ids(tokenizer, PADS | {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}),
    )
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": TOKEN3, "longest_edge": 4 * TOKEN3}, patch_size=16),
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": TOKEN3, "longest_edge": 16 * TOKEN3}),
        tokenizer=tokenizer,
        chat_template=template,
    )
    return config, processor


def llava_onevision(tokenizer: Any, text: dict[str, Any], template: str) -> tuple[Any, Any]:
    grid = [[28, 28], [28, 56], [56, 28]]
    tower = _tower(text) | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "vision_use_head": False}
    config = LlavaOnevisionConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=tower,
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
        **_ids(tokenizer, {"image_token_index": "<image>", "video_token_index": "<video>"}),
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=PICTURE, image_grid_pinpoints=grid),
        video_processor=LlavaOnevisionVideoProcessor(size=PICTURE),
        tokenizer=tokenizer,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    return config, processor


def smolvlm(tokenizer: Any, text: dict[str, Any], template: str) -> tuple[Any, Any]:
    config = SmolVLMConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=_tower(text) | {"image_size": 28, "patch_size": 14},
        scale_factor=2,
        tie_word_embeddings=False,
        **_ids(tokenizer, {"image_token_id": "<image>"}) | {"pad_token_id": text["pad_token_id"]},
    )
    edge: dict[str, Any] = {"longest_edge": 28}
    sampling: dict[str, Any] = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": edge}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size=edge),
        video_processor=SmolVLMVideoProcessor(size=edge, max_image_size=edge, **sampling),
        tokenizer=tokenizer,
        image_seq_len=1,
        chat_template=template,
    )
    return config, processor


def internvl(tokenizer: Any, text: dict[str, Any], template: str) -> tuple[Any, Any]:
    config = InternVLConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=_tower(text) | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_seq_length=1,
        tie_word_embeddings=False,
        **_ids(tokenizer, {"image_token_id": "<IMG_CONTEXT>"}),
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=PICTURE, crop_to_patches=True, max_patches=3),
        video_processor=InternVLVideoProcessor(size=PICTURE),
        tokenizer=tokenizer,
        image_seq_length=1,
        chat_template=template,
    )
    return config, processor


_TILES = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
TINY = {
    "videollama3": Tiny(videollama3, (*CHATML, "<|image_pad|>", "<|video_pad|>")),
    "qwen2_5_vl": Tiny(qwen2_5_vl, QWEN),
    "qwen3_vl": Tiny(qwen3_vl, QWEN),
    "llava_onevision": Tiny(llava_onevision, (*CHATML, "<image>", "<video>")),
    "smolvlm": Tiny(
        smolvlm,
        (*CHATML, "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>", *_TILES),
        eos="<end_of_utterance>",
        pad="<|im_end|>",
    ),
    "internvl": Tiny(
        internvl,
        (*CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        names=(
            ("start_image_token", "<img>"),
            ("end_image_token", "</img>"),
            ("context_image_token", "<IMG_CONTEXT>"),
            ("video_token", "<video>"),
        ),
    ),
}
