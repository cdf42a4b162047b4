"""What alarm tokens cost, and what a guard saves: an alarm model against its plain base on the same prompts, and against generation.

    OMP_NUM_THREADS=1 python benchmarks/alarm_overhead.py [--device cuda] [--shape small|2b] [--repeats 15]

Random weights: time does not depend on their values. `forward`: one pass over a prompt, with logits of its last token. `generate`: the
prompt and NEW_TOKENS greedy tokens, no early end. `guard`: `alarm_probs`, one pass without the language-model head, against the alarm
model's own generate. All are timed in turns, the order reversed every other round, after two rounds that are not counted. On a CPU, seconds
are CPU seconds of this process, which other work on the machine changes least; on a GPU, seconds by the clock.

One JSON line comes last: forward_ratio and generate_ratio (alarm / plain, goal <= 1.02) and guard_speedup (generate / guard, goal >= 10)
are medians of each round's quotient, with their quartiles beside them: a goal within the quartiles is neither met nor missed by this run
(`goals_met` null). Where the device is not there, every figure is null and `status` says "not measured".
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from timing import hardware, met, timed
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

from videosafety.hf_models.configuration_alarm_videollama3 import AlarmVideoLlama3Config
from videosafety.hf_models.modeling_alarm_videollama3 import AlarmVideoLlama3ForConditionalGeneration

NEW_TOKENS = 64
GOALS = {"forward_ratio": 1.02, "generate_ratio": 1.02, "guard_speedup": 10.0}
# 2b: VideoLLaMA3-2B, a Qwen2.5-1.5B behind SigLIP so400m, by the public config.json of DAMO-NLP-SG/VideoLLaMA3-2B. small: for a CPU.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2b": (
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14},
    ),
    "small": (
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2},
        {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 14},
    ),
}
VOCABULARY = {"2b": 151936, "small": 32000}
VIDEO, VISUAL, TEXTUAL, WORDS = 3, 4, 5, 10  # token ids; words begin at the last


def models(shape: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(plain, alarm) with the same weights but for the alarm's own."""
    text, vision = SHAPES[shape]
    text = text | {"model_type": "qwen2", "vocab_size": VOCABULARY[shape], "tie_word_embeddings": True, "bos_token_id": None}
    fields: dict[str, Any] = {"text_config": text, "vision_config": vision, "image_token_id": 2, "video_token_id": VIDEO}
    fields["tie_word_embeddings"] = True
    alarm_fields = {"visual_alarm_token_id": VISUAL, "textual_alarm_token_id": TEXTUAL}
    torch.manual_seed(0)
    with torch.device(device):
        alarm = AlarmVideoLlama3ForConditionalGeneration(AlarmVideoLlama3Config(**fields, **alarm_fields)).to(dtype).eval()
        plain = VideoLlama3ForConditionalGeneration(VideoLlama3Config(**fields)).to(dtype).eval()
    alarm.alarm_tokens.float()
    alarm.alarm_heads.float()
    _, left = plain.load_state_dict(alarm.state_dict(), strict=False)
    assert all(key.startswith("alarm_") for key in left), left
    return plain, alarm


def prompt(frames: int, patches: int, words: int, model: Any) -> dict[str, torch.Tensor]:
    """One video of frames of `patches` x `patches` tokens, then words; with one alarm token of each kind in place."""
    vision, device = model.config.vision_config, model.device
    side = 2 * patches  # the processor merges 2 x 2 patches of a video into one token
    pixels = vision.num_channels * vision.patch_size**2
    ids = [VIDEO] * (frames * patches**2) + [VISUAL] + [WORDS + n for n in range(words)] + [TEXTUAL] + [WORDS] * 5
    count = frames * patches**2
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values_videos": torch.randn(frames * side * side, pixels),
        "video_grid_thw": torch.tensor([[frames, side, side]]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": torch.ones(count, dtype=torch.bool),
    }
    return {k: (v.to(device, model.dtype) if v.is_floating_point() else v.to(device)) for k, v in inputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--patches", type=int, default=4, help="tokens along each side of a frame")
    parser.add_argument("--words", type=int, default=32)
    asked = parser.parse_args()

    told: dict[str, Any] = {"device": asked.device, "shape": asked.shape, "new_tokens": NEW_TOKENS, "repeats": asked.repeats}
    told |= {"torch": torch.__version__, "transformers": transformers.__version__}
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps(dict.fromkeys(GOALS) | told | {"status": "not measured", "why": "no CUDA device here"}))
        return
    dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
    plain, alarm = models(asked.shape, asked.device, dtype)
    inputs = prompt(asked.frames, asked.patches, asked.words, alarm)
    greedy = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
    ways: dict[str, Callable[[], Any]] = {
        "plain_forward": lambda: plain(**inputs, logits_to_keep=1),
        "alarm_forward": lambda: alarm(**inputs, logits_to_keep=1),
        "plain_generate": lambda: plain.generate(**inputs, **greedy),
        "alarm_generate": lambda: alarm.generate(**inputs, **greedy),
        "guard": lambda: alarm.alarm_probs(**inputs),
    }
    rounds: list[dict[str, float]] = []
    with torch.inference_mode():
        probabilities = alarm.alarm_probs(**inputs)
        assert bool(((probabilities > 0) & (probabilities < 1)).all()), "the guard must have something to say"
        for number in range(asked.repeats + 2):
            order = list(ways)[:: -1 if number % 2 else 1]
            rounds.append({way: timed(ways[way], asked.device) for way in order})
            print({way: f"{seconds * 1e3:.1f} ms" for way, seconds in rounds[-1].items()}, file=sys.stderr)
    rounds = rounds[2:]

    pairs = {
        "forward_ratio": ("alarm_forward", "plain_forward"),
        "generate_ratio": ("alarm_generate", "plain_generate"),
        "guard_speedup": ("alarm_generate", "guard"),
    }
    quotients = {name: [r[a] / r[b] for r in rounds] for name, (a, b) in pairs.items()}
    figures: dict[str, Any] = {name: round(statistics.median(found), 4) for name, found in quotients.items()}
    spread = {name: [round(q, 4) for q in statistics.quantiles(found, n=4)[::2]] for name, found in quotients.items()}
    figures |= {f"{name}_quartiles": found for name, found in spread.items()}
    seconds = {f"{way}_ms": round(1e3 * statistics.median(r[way] for r in rounds), 2) for way in ways}
    goals = {name: met(spread[name], goal, at_least=name == "guard_speedup") for name, goal in GOALS.items()}
    told |= {
        "status": "measured",
        "hardware": hardware(asked.device),
        "dtype": str(dtype).removeprefix("torch."),
        "prompt_tokens": inputs["input_ids"].shape[1],
    }
    told |= {"parameters": alarm.num_parameters(), "goals_met": goals}
    print(json.dumps(figures | seconds | told))


if __name__ == "__main__":
    main()
