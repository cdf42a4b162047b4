"""One step of GRPO with video, ours against TRL's own path: time, and peak memory.

    OMP_NUM_THREADS=1 python benchmarks/grpo_step.py [--device cuda] [--shape small|2b] [--repeats 3] [--generations 6] [--tokens 64]

`stock` is TRL 1.16's GRPOTrainer with the least that makes it see a video when it scores: the tensors that it samples from are also given
to the policy's and the reference's scoring passes. It encodes a video once for every answer in sampling, and again in both. `ours` is
`VideoGRPOTrainer`. A step is what one prompt takes: sampling its answers, reference, policy, backward pass; rewards and optimiser are left
out, they are the same. Both score the same answers once before anything is timed, and their losses must agree.

The model has random weights, the proportions of VideoLLaMA3-2B scaled down: about as much work for the vision tower as for the language
model on the visual tokens, 512 of them to 64 tokens an answer (the paper: about 4,500 to at most 768). On a CPU, seconds are CPU seconds
of the process, which other work on the machine changes least, and memory is the growth of the resident set, each way in a process of its
own; on a GPU, seconds by the clock and memory by torch's account. Ways take turns, after one round that is not counted.

One JSON line comes last: `speedup` (stock / ours, goal >= 3) and `memory_ratio` (ours / stock, goal <= 0.6). Where the device is not there,
both are null and `status` says "not measured".
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from timing import hardware, timed
from trl import GRPOTrainer

from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.tiny import tiny_parts
from videosafety.lmms_eval_tasks.video import FrameCache, Sampling
from videosafety.training_recipes import recipe as recipes
from videosafety.training_recipes.collate import Encoder
from videosafety.training_recipes.grpo import Settings
from videosafety.training_recipes.grpo_trainer import VideoGRPOTrainer, never_sampled
from videosafety.training_recipes.schema import Row, new_row

GOALS = {"speedup": 3.0, "memory_ratio": 0.6}
WAYS = ("ours", "stock")
# (width and layers of the language model, layers of the vision tower, half as wide). 2b: about the size of VideoLLaMA3-2B.
SHAPES = {"small": (384, 6, 8), "2b": (2048, 28, 27)}
FRAMES, SIDE = 8, 224  # 8 frames of 8 x 8 tokens
TOLERANCE = 1e-4  # of the losses, relative


class Stock(GRPOTrainer):
    """TRL's trainer, with the prompt's tensors in every pass."""

    encoder: Encoder
    media: dict[str, Any]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.media = {k: v.to(self.accelerator.device) for k, v in self.encoder.prompts(inputs).items()}
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: Any) -> Any:
        ids, mask = self.media.pop("input_ids"), self.media.pop("attention_mask").bool()
        return [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)], None, self.media

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *_: Any, **more: Any
    ) -> Any:
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        with self.accelerator.autocast():
            out = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True, **self.media)
        entropy = out.entropy[:, -logits_to_keep:] if more.get("compute_entropy") else None
        return out.log_probs[:, -logits_to_keep:], entropy, None


def checkpoint(folder: Path, shape: str) -> Path:
    """A plain VideoLlama3 of the shape and a clip of noise, of which token compression keeps everything."""
    width, layers, tower = SHAPES[shape]
    torch.manual_seed(0)
    config, processor = tiny_parts("videollama3", width, layers)
    config.vision_config.num_hidden_layers = tower
    config.text_config.initializer_range = config.vision_config.initializer_range = 0.02
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 2 * FRAMES * SIDE * SIDE}
    model = FAMILIES["videollama3"].base_model(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    pictures = np.random.default_rng(0).integers(0, 255, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = SIDE
        stream.bit_rate = 50_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return folder


def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def trainer(way: str, folder: Path, asked: argparse.Namespace) -> Any:
    """The trainer of one way, with a policy that has moved off its reference."""
    gpu = asked.device == "cuda"
    recipe = recipes.Recipe("grpo", str(folder / "model"), ["rows.jsonl"], ["language_model"])
    model, processor = recipes.load_model(recipe)
    # Answers as long as they may be: the tokens that would end one are not sampled before.
    generation = {"min_new_tokens": asked.tokens}
    settings = Settings(
        output_dir=str(folder / "out"),
        use_cpu=not gpu,
        bf16=gpu,
        num_generations=asked.generations,
        per_device_train_batch_size=asked.generations,
        max_completion_length=asked.tokens,
        generation_kwargs=generation,
        report_to="none",
        gradient_checkpointing=False,
        remove_unused_columns=False,
        max_steps=1,
    )
    row = new_row(id="r", source="made", prompt="What happens in this video?", reference="-", videos=["clip.mp4"], label_version="1")
    encoder = Encoder(processor, folder, FrameCache(folder / "frames", Sampling(1.0, FRAMES, None)))
    if way == "ours":
        reference, _ = recipes.load_model(recipes.Recipe("grpo", str(folder / "model"), ["rows.jsonl"], []))
        made: Any = VideoGRPOTrainer(model, reward, settings, [row], encoder, recipe, reference=reference, think="", label="")
    else:
        settings.generation_kwargs = generation | {"suppress_tokens": never_sampled(model, encoder.tokenizer, settings)}
        made = Stock(model, reward, settings, Dataset.from_list([dict(row)]), processing_class=processor)
        made.encoder = encoder
        made.ref_model.requires_grad_(False)
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape).to(parameter.device)
                parameter.add_(0.3 * parameter.std() * noise if parameter.dim() > 1 else 0.0)
    made.row = row
    return made


def step(made: Any) -> float:
    """The loss of one prompt, after its backward pass."""
    rows: list[Row] = [made.row] * made.num_generations
    batch = made._generate_and_score_completions(rows)
    loss = made._compute_loss(made.model, batch)
    made.accelerator.backward(loss)
    made.model.zero_grad()
    return float(loss.detach())


def agree(both: dict[str, Any]) -> dict[str, float]:
    """The losses of both ways on the answers of one, which must be the same, and not 0."""
    rows = [both["stock"].row] * both["stock"].num_generations
    batch = both["stock"]._generate_and_score_completions(rows)
    answers = [ids[seen.bool()].tolist() for ids, seen in zip(batch["completion_ids"], batch["completion_mask"], strict=True)]
    ours = both["ours"]
    sample = ours._generate_single_turn

    def given(self: Any, *_: Any) -> Any:
        self._see(self.model)
        return answers, None

    ours._generate_single_turn = types.MethodType(given, ours)
    losses = {"stock": float(both["stock"]._compute_loss(both["stock"].model, batch).detach())}
    losses["ours"] = float(ours._compute_loss(ours.model, ours._generate_and_score_completions(rows)).detach())
    ours._generate_single_turn = sample
    difference = abs(losses["ours"] - losses["stock"])
    assert losses["stock"] > 1e-4, "the losses must have something in them"
    assert difference <= TOLERANCE * losses["stock"], losses
    return losses


def _resident(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) * 1024


def growth(made: Any, device: str) -> int:
    """Bytes by which memory grows in a first step, at the most."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(made)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak so far, which loading set, is forgotten
    before = _resident("VmRSS")
    step(made)
    return _resident("VmHWM") - before


def memory(way: str, folder: Path, asked: argparse.Namespace) -> int:
    """`growth`, in a process of its own."""
    own = [sys.executable, __file__, "--memory-of", way, "--folder", str(folder)]
    own += [word for key in ("device", "shape", "generations", "tokens") for word in (f"--{key}", str(getattr(asked, key)))]
    done = subprocess.run(own, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()

    if asked.memory_of:
        print(growth(trainer(asked.memory_of, asked.folder, asked), asked.device))
        return
    told: dict[str, Any] = {key: getattr(asked, key) for key in ("device", "shape", "repeats", "generations", "tokens")}
    told |= {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps(dict.fromkeys(GOALS) | told | {"status": "not measured", "why": "no CUDA device here"}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint(Path(scratch), asked.shape)
        bytes_of = {way: memory(way, folder, asked) for way in WAYS}
        print({way: f"{count / 2**20:.0f} MiB" for way, count in bytes_of.items()}, file=sys.stderr)
        both = {way: trainer(way, folder, asked) for way in WAYS}
        losses = agree(both)
        rounds: list[dict[str, float]] = []
        for number in range(asked.repeats + 1):
            order = WAYS[:: -1 if number % 2 else 1]
            rounds.append({way: timed(lambda way=way: step(both[way]), asked.device) for way in order})
            print({way: f"{seconds:.2f} s" for way, seconds in rounds[-1].items()}, file=sys.stderr)
        prompt = both["ours"]._prompts[0]
    rounds = rounds[1:]
    speedups = [r["stock"] / r["ours"] for r in rounds]
    figures: dict[str, Any] = {"speedup": round(statistics.median(speedups), 3)}
    figures["memory_ratio"] = round(bytes_of["ours"] / bytes_of["stock"], 3)
    figures |= {"speedup_least": round(min(speedups), 3), "speedup_most": round(max(speedups), 3), "losses": losses}
    figures |= {f"{way}_seconds": round(statistics.median(r[way] for r in rounds), 3) for way in WAYS}
    figures |= {f"{way}_mib": round(bytes_of[way] / 2**20) for way in WAYS}
    figures["prompt_tokens"] = len(prompt.ids)
    figures["visual_tokens"] = int(sum(len(features.pooled) for features in prompt.seen.values()))
    figures["goals_met"] = {
        "speedup": figures["speedup"] >= GOALS["speedup"],
        "memory_ratio": figures["memory_ratio"] <= GOALS["memory_ratio"],
    }
    print(json.dumps(figures | told | {"hardware": hardware(asked.device), "status": "measured"}))


if __name__ == "__main__":
    main()
