"""The wrapper takes any image-text-to-text model: another video family, and a model that knows only images and gets frames as images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from conftest import write_video
from test_model import ask
from videosafety.hf_models.tiny import TEMPLATE, tiny_tokenizer
from videosafety.lmms_eval_tasks.model import VideoSafetyR1

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 400, "initializer_range": 0.4, "bos_token_id": None,
}  # fmt: skip


def tokenizer_with(*tokens: str) -> tuple[Any, dict[str, Any]]:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    return tokenizer, TEXT | {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def qwen(out: Path) -> None:
    tokenizer, text = tokenizer_with("<|vision_start|>", "<|vision_end|>")
    template = TEMPLATE.read_text(encoding="utf-8")
    for pad in ("<|image_pad|>", "<|video_pad|>"):
        template = template.replace(pad, f"<|vision_start|>{pad}<|vision_end|>")
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}),
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 8 * 28 * 28}),
        tokenizer=tokenizer,
        chat_template=template,
    ).save_pretrained(out)
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=False,
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(out)


def llava(out: Path) -> None:
    tokenizer, text = tokenizer_with("<image>")
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.read_text(encoding="utf-8").replace("<|image_pad|>", "<image>"),
    ).save_pretrained(out)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    config = LlavaConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=tower | {"model_type": "clip_vision_model", "image_size": 28},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    LlavaForConditionalGeneration(config).save_pretrained(out)


@pytest.mark.parametrize("build", [qwen, llava], ids=["Qwen2.5-VL", "LLaVA, frames as images"])
def test_other_families_answer_and_see_the_video(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path / "cache"))
    build(tmp_path / "model")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "image.png")
    clips = [str(write_video(tmp_path / f"{n}.mp4", frames=16 + 8 * n, size=(112, 84))) for n in range(2)]
    rows = [
        {"query": "What happens?", "video": clips[0]},
        {"query": "Only text."},
        {"query": "What happens in this other one?", "video": clips[1]},
        {"query": "What is on the card?", "image": str(tmp_path / "image.png")},
    ]

    def answers(batch_size: int) -> tuple[list[str], list[set[str]]]:
        model = VideoSafetyR1(pretrained=str(tmp_path / "model"), device="cpu", device_map="cpu", batch_size=batch_size, resume=False)
        seen: list[set[str]] = []
        original = model._model.generate
        monkeypatch.setattr(model._model, "generate", lambda **inputs: (seen.append(set(inputs)), original(**inputs))[1])
        return ask(model, rows), seen

    single, seen = answers(1)
    batched, _ = answers(4)
    assert single == batched
    assert sum(bool({"pixel_values", "pixel_values_videos"} & inputs) for inputs in seen) == 3
