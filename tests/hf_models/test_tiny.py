"""The tiny checkpoint: the same for the same seed, safetensors only, loads like any other, and looks at its video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, VideoLlama3ForConditionalGeneration
from transformers.video_utils import VideoMetadata

from videosafety.hf_models.tiny import NOTE, build_tiny, tiny_tokenizer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(tiny).eval()


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)], ids=["same seed", "other seed"])
def test_the_seed_makes_the_weights(tiny: Path, tmp_path: Path, seed: int, same: bool) -> None:
    torch.rand(7)  # whatever was drawn before must not matter
    first, second = weights(tiny), weights(build_tiny(tmp_path / "model", seed=seed, alarm=False))
    assert set(first) == set(second)
    random = [key for key, value in first.items() if value.float().std() > 0]  # norms and biases start as constants
    assert len(random) > 10
    assert all(torch.equal(first[key], second[key]) == same for key in random)


def test_files_are_safetensors_and_what_a_processor_needs(tiny: Path) -> None:
    files = {path.name for path in tiny.rglob("*") if path.is_file()}
    assert files >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    assert [name for name in files if Path(name).suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".py", ".ckpt")] == []
    assert sum(path.stat().st_size for path in tiny.iterdir()) < 2_000_000
    assert json.loads((tiny / "config.json").read_text())["note"] == NOTE  # goes into every result made with it


def test_it_loads_offline_as_any_checkpoint_does(model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("loading must not ask the network"))
    assert type(AutoModelForImageTextToText.from_pretrained(tiny)) is VideoLlama3ForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(tiny)) is type(processor)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_width_and_layers_are_as_asked(tmp_path: Path) -> None:
    config = json.loads((build_tiny(tmp_path, hidden_size=64, layers=1) / "config.json").read_text())
    assert (config["text_config"]["hidden_size"], config["text_config"]["num_hidden_layers"]) == (64, 1)


def test_an_unknown_family_is_an_error_that_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown family 'llama': there are videollama3, qwen2_5_vl"):
        build_tiny(tmp_path / "model", family="llama")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("alarm", "error"), [(True, ValueError), (False, OSError)])
def test_a_file_where_the_folder_should_be_is_an_error(alarm: bool, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(error):
        build_tiny(tmp_path / "model", alarm=alarm)
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["", "Is it safe?", "Grüße, ¿qué?", "怎么办？", "كيف؟", "क्या", "🔪 \u200d\ufe0f", "tabs\t\n\r ends "], ids=range(8)
)
def test_the_tokenizer_keeps_any_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 384  # rows of the embedding


# --- the chat template ------------------------------------------------------------------------------------------------------------

TEXT, VIDEO, IMAGE = {"type": "text", "text": "What now?"}, {"type": "video"}, {"type": "image"}
TURN = "<|im_start|>user\n{}<|im_end|>\n"
ANSWER = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        pytest.param([{"role": "user", "content": "What now?"}], TURN.format("What now?"), id="a string"),
        pytest.param([{"role": "user", "content": [TEXT]}], TURN.format("What now?"), id="text"),
        pytest.param([{"role": "user", "content": [VIDEO, TEXT]}], TURN.format("<|video_pad|>\nWhat now?"), id="video and text"),
        pytest.param(
            [{"role": "user", "content": [IMAGE, IMAGE, TEXT]}], TURN.format("<|image_pad|>\n" * 2 + "What now?"), id="two images"
        ),
        pytest.param([{"role": "user", "content": [TEXT, VIDEO]}], TURN.format("What now?<|video_pad|>\n"), id="text and video"),
        pytest.param(
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [TEXT]}],
            "<|im_start|>system\nBe kind.<|im_end|>\n" + TURN.format("What now?"),
            id="a system prompt",
        ),
        pytest.param(
            [
                {"role": "user", "content": [VIDEO, TEXT]},
                {"role": "assistant", "content": [{"type": "text", "text": "A walk."}]},
                {"role": "user", "content": "And then?"},
            ],
            TURN.format("<|video_pad|>\nWhat now?") + ANSWER + "A walk.<|im_end|>\n" + TURN.format("And then?"),
            id="several turns",
        ),
        pytest.param([{"role": "user", "content": "{{ 1 + 1 }} {% x %}"}], TURN.format("{{ 1 + 1 }} {% x %}"), id="template code is text"),
    ],
)
def test_the_prompt_letter_by_letter(processor: Any, messages: list[dict[str, Any]], prompt: str) -> None:
    for add in (False, True):
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        assert text == prompt + ANSWER * add


def test_assistant_turns_are_marked_for_training(processor: Any) -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "The person walks."}, {"role": "user", "content": "R"}]
    found = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [token for token, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert processor.tokenizer.decode(marked) == "The person walks.<|im_end|>"


# --- the model --------------------------------------------------------------------------------------------------------------------


def answer(model: Any, processor: Any, frames: np.ndarray | None, question: str = "What happens?") -> str:
    content = [{"type": "text", "text": question}] if frames is None else [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    media: dict[str, Any] = {}
    if frames is not None:
        meta = VideoMetadata(total_num_frames=len(frames), fps=1.0, duration=float(len(frames)), frames_indices=list(range(len(frames))))
        media = {"videos": [torch.from_numpy(frames).permute(0, 3, 1, 2)], "video_metadata": [meta], "do_sample_frames": False}
    inputs = processor(text=[text], return_tensors="pt", **media)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_answer_depends_on_the_video_and_on_the_question(model: Any, processor: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    dark = np.zeros_like(noise)
    answers = [answer(model, processor, noise), answer(model, processor, dark), answer(model, processor, None)]
    answers.append(answer(model, processor, noise, "Is it harmful or safe?"))
    assert len(set(answers)) == 4
    assert answer(model, processor, noise) == answers[0]


def test_answers_show_as_words(model: Any, processor: Any) -> None:
    text = answer(model, processor, None)
    assert text.strip()
    assert text.isascii()
    assert text.replace(" ", "").isalpha()
