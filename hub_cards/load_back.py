"""Run in a process of its own, without videosafety: load a checkpoint as a stranger would, and write down what it computes.

    python -I load_back.py < {"source": "ORG/NAME", "revision": "<commit>", "code": true, "out": "logits.safetensors"}

`source` is a repository with its commit, or a folder without one. `code`: run the code beside the weights, pinned to the same commit.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

FRAMES, SIDE = 4, 56  # of the clip, and pixels of its edge: enough for every family's patches
QUESTION = "What happens here? Is it harmful or safe?"


def prompts(processor: Any) -> dict[str, Any]:
    """Name -> inputs: a question alone, and with a clip or an image of noise where the processor takes them."""
    noise = torch.randint(0, 256, (FRAMES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown: dict[str, list[dict[str, Any]]] = {"text": []}
    if getattr(processor, "video_processor", None) is not None:
        shown["video"] = [{"type": "video", "video": noise}]
    elif getattr(processor, "image_processor", None) is not None:
        shown["image"] = [{"type": "image", "image": noise[0]}]
    told = {"do_sample_frames": False} if "video" in shown else {}
    made = {}
    for name, parts in shown.items():
        chat = [[{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]]
        made[name] = processor.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", processor_kwargs=told if parts else {}
        )
    return made


def load(source: str, revision: str | None, code: bool) -> tuple[Any, Any]:
    """(model, processor) on the CPU, in the dtype of the file."""
    pins: dict[str, Any] = {"trust_remote_code": code} | ({"revision": revision} if revision else {})
    pins |= {"code_revision": revision} if code and revision else {}
    named = getattr(AutoConfig.from_pretrained(source, **pins), "auto_map", None) or {}
    only_causal = "AutoModelForCausalLM" in named and "AutoModelForImageTextToText" not in named
    kind = AutoModelForCausalLM if only_causal else AutoModelForImageTextToText
    model = kind.from_pretrained(source, dtype="auto", use_safetensors=True, **pins).eval()
    return model, AutoProcessor.from_pretrained(source, **pins)


def main() -> None:
    asked = json.load(sys.stdin)
    model, processor = load(asked["source"], asked.get("revision"), asked["code"])
    computed = {}
    with torch.no_grad():
        for name, inputs in prompts(processor).items():
            out = model(**inputs)
            for kind in ("logits", "alarm_logits"):
                if getattr(out, kind, None) is not None:
                    computed[f"{name}.{kind}"] = getattr(out, kind).float().contiguous()
    save_file(computed, asked["out"], metadata={"class": type(model).__name__})


if __name__ == "__main__":
    main()
