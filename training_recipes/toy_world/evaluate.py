"""How a toy model answers the held-out rows: DSR, FRR and exact match with n and intervals, and AUROC of both alarm heads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from videosafety.hf_models.calibrate import MODALITIES, auroc
from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.toy_world import dataset, score, world
from videosafety.lmms_eval_tasks.video import FrameCache, Sampling
from videosafety.training_recipes.collate import Encoder
from videosafety.training_recipes.recipe import Recipe, load_model
from videosafety.training_recipes.schema import new_row

MAX_NEW_TOKENS = 56  # the longest right answer has 45


def answers(model: Any, processor: Any, docs: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
    """The greedy answers, and the alarm probabilities (n, 2), NaN for a model without alarm tokens."""
    paths = dataset.ensure_clips(world.Clip.of(doc["video_id"]) for doc in docs)
    folder = next(iter(paths.values())).parent
    encoder = Encoder(processor, folder, FrameCache(cache_dir() / "frames", Sampling()))
    rows = [new_row(id=doc["id"], source="toy_world", prompt=doc["query"], videos=[f"{doc['video_id']}.mp4"]) for doc in docs]
    inputs = encoder.prompts(rows)
    with torch.no_grad():
        out = model.eval().generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts = processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    probabilities = getattr(model, "last_alarm_probs", None)
    return [text.strip() for text in texts], torch.full((len(docs), 2), torch.nan) if probabilities is None else probabilities


def evaluate(folder: str | Path) -> dict[str, Any]:
    """The figures of a checkpoint folder: a `metrics.Rate` of each cell and of `utility`, `auroc_visual` and `auroc_textual` over all cells
    (null without alarm tokens), utility by kind of question, and a sample answer of each cell."""
    model, processor = load_model(Recipe(stage="sft", model=str(folder), data=["-"], train=[]))
    found: dict[str, Any] = {}
    samples: dict[str, str] = {}
    points: dict[str, list[tuple[float, int]]] = {name: [] for name in MODALITIES}
    for cell in (*world.CELLS, world.UTILITY):
        docs = dataset.rows(cell)
        texts, probabilities = answers(model, processor, docs)
        samples[cell] = f"{docs[0]['query']} -> {texts[0]}"
        if cell == world.UTILITY:
            right = [score.process_utility(doc, [text])["exact_match"].get("score") for doc, text in zip(docs, texts, strict=True)]
            found[cell] = rate(right, docs)
            found["utility_kinds"] = {kind: rate(*zip(*pairs, strict=True))["value"] for kind, pairs in _by_kind(right, docs).items()}
            continue
        to_score, _ = metrics.METRICS["frr" if cell == "safeq" else "dsr"]
        found[cell] = rate([to_score(score.verdict(doc, text)) for doc, text in zip(docs, texts, strict=True)], docs)
        for column, name in enumerate(MODALITIES):
            points[name] += [(p, doc[f"{name}_label"]) for p, doc in zip(probabilities[:, column].tolist(), docs, strict=True) if p == p]
    for name, pairs in points.items():
        found[f"auroc_{name}"] = auroc([p for p, _ in pairs], [label for _, label in pairs])
    return found | {"samples": samples}


def rate(scores: Sequence[float | None], docs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A rate as the project's own verdict code makes it, rows of one clip as one cluster."""
    return asdict(metrics.rate(scores, [doc["video_id"] for doc in docs]))


def _by_kind(scores: list[float | None], docs: list[dict[str, Any]]) -> dict[str, list[tuple[float | None, dict[str, Any]]]]:
    found: dict[str, list[tuple[float | None, dict[str, Any]]]] = {}
    for value, doc in zip(scores, docs, strict=True):
        found.setdefault(doc["category"], []).append((value, doc))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a checkpoint folder")
    print(json.dumps(evaluate(parser.parse_args().model), indent=1))


if __name__ == "__main__":
    main()
