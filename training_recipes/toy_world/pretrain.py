"""Trains the toy world's base from nothing, in plain loops: first the vision tower learns to name what a frame shows, then all of the
model learns to see, to answer, and to help with everything, harmful or not. What comes out is helpful and unsafe."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import VideoLlama3ForConditionalGeneration

from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.toy_world import draw, world
from videosafety.lmms_eval_tasks.video import Clip, FrameCache, Sampling
from videosafety.training_recipes.collate import Encoder
from videosafety.training_recipes.toy_world import base
from videosafety.training_recipes.toy_world.rows import base_rows, data_root

VISION_STEPS, FRAMES_A_STEP = 400, 64
STEPS, ROWS_A_STEP = 800, 32
RATE = 2e-3
CLIP_NORM = 1.0


class InMemory:
    """Frames of few and small clips, each decoded once and kept."""

    def __init__(self) -> None:
        self.cache = FrameCache(cache_dir() / "frames", Sampling())
        self.sampling = self.cache.sampling
        self.kept: dict[str, Clip] = {}

    def get(self, path: str) -> Clip:
        if path not in self.kept:
            self.kept[path] = self.cache.get(path)
        return self.kept[path]


class _Learner:
    """AdamW with a warm-up, a cosine and a clipped norm."""

    def __init__(self, parameters: list[Any], steps: int) -> None:
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
        rate = lambda step: min(1, step / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1, step / steps))))  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()


def pretrain_vision(tower: Any, processor: Any, seed: int, steps: int = VISION_STEPS) -> float:
    """Teach the vision tower to name shape, colour, number and place in single frames; the linear heads are dropped. Returns the loss."""
    clips = world.clips(held_out=False)
    pixels, targets = _frames(processor, clips)
    sizes = [len(world.SHAPES), len(world.COLOURS), len(world.COUNTS), 3, 3]
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, size) for size in sizes)
    learner = _Learner([*tower.parameters(), *heads.parameters()], steps)
    chance = torch.Generator().manual_seed(seed)
    tokens = (draw.SIDE // 28) ** 2
    loss = torch.tensor(torch.nan)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (FRAMES_A_STEP,), generator=chance)
        grid = torch.tensor([[1, draw.SIDE // 14, draw.SIDE // 14]] * FRAMES_A_STEP)
        patches = pixels[chosen].flatten(0, 1)
        states = tower(pixel_values=patches, grid_thw=grid, merge_sizes=torch.tensor([2] * FRAMES_A_STEP)).last_hidden_state
        features = states.view(FRAMES_A_STEP, tokens, -1).mean(1)
        losses = [nn.functional.cross_entropy(head(features), targets[chosen, n]) for n, head in enumerate(heads)]
        loss = torch.stack(losses).sum()
        learner.step(loss)
    return loss.item()


def _frames(processor: Any, clips: list[world.Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (frames, 16, 588) of every frame, and what it shows: (frames, 5) shape, colour, count, column, row."""
    frames = [torch.from_numpy(np.ascontiguousarray(draw.frames(clip).transpose(0, 3, 1, 2))) for clip in clips]
    pixels = processor.video_processor(videos=frames, return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]
    shown = []
    for clip in clips:
        dx, dy = (int(np.sign(step)) for step in draw.MOVES[clip.motion])
        kind = [world.SHAPES.index(clip.shape), world.COLOURS.index(clip.colour), world.COUNTS.index(clip.count)]
        shown += [[*kind, dx * (n - 1) + 1, dy * (n - 1) + 1] for n in range(draw.FRAMES)]
    return pixels.view(len(shown), -1, pixels.shape[-1]), torch.tensor(shown)


def pretrain(out: Path, seed: int = 0, vision_steps: int = VISION_STEPS, steps: int = STEPS) -> Path:
    """Make the base from nothing and write it, a plain VideoLlama3 checkpoint, to the folder `out`."""
    torch.manual_seed(seed)
    processor = base.processor()
    model = VideoLlama3ForConditionalGeneration(base.config(processor.tokenizer))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.train()
    pretrain_vision(model.model.vision_model, processor, seed, vision_steps)
    model.model.vision_model.requires_grad_(False)  # as in every stage after it
    encoder = Encoder(processor, data_root(), InMemory())
    rows = base_rows(steps * ROWS_A_STEP, seed)
    learner = _Learner([p for p in model.parameters() if p.requires_grad], steps)
    for step in range(steps):
        batch = rows[step * ROWS_A_STEP : (step + 1) * ROWS_A_STEP]
        inputs, labels = encoder.pairs(batch, [str(row["completion"]) for row in batch])
        learner.step(model(**inputs, labels=labels).loss)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model has nothing for more to do
    print(pretrain(options.out, options.seed))


if __name__ == "__main__":
    main()
