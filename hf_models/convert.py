"""The authors' checkpoints, VideoLLaMA3 and VideoSafety-R1 in remote-code format, as native ones. transformers ships no converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    VideoLlama3Config,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
    VideoLlama3VisionConfig,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from videosafety.hf_models import build
from videosafety.hf_models.alarm_core import TEXTUAL_ALARM, VISUAL_ALARM
from videosafety.hf_models.checkpoint import Tensors, check_empty, fetch, first_line, read_json, read_weights
from videosafety.hf_models.convert_keys import check, rename
from videosafety.hf_models.families import FAMILIES, TEMPLATES

FAMILY = FAMILIES["videollama3"]
SOURCE_TYPE = "videollama3_qwen2"
PLACEHOLDERS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
# Of the authors' image processor and model, where a file does not say: videollama3_encoder/image_processing_videollama3.py and
# transformers_api/processing_videollama3.py of github.com/DAMO-NLP-SG/VideoLLaMA3.
PIXELS = {"min_tokens": 16, "max_tokens": 16384, "patch_size": 14}
FRAMES = {"image_merge_size": 1, "video_merge_size": 2, "fps": 1, "max_frames": 128}


def convert(
    source: str | Path, out: Path, *, revision: str | None = None, vision: str | Path | None = None, licence: str | None = None
) -> Path:
    """Write the native checkpoint of an authors' one to the folder `out`, and return it: VideoLlama3, or where `source` has alarm vectors
    (a training checkpoint of VideoSafety-R1), our alarm checkpoint with them.

    Every tensor must match key for key and shape for shape. Weights keep their dtype; alarm vectors and heads become float32.

    Args:
        source: Hub id or folder with config.json, weights (safetensors, or .bin read with weights_only) and tokenizer.
        vision: folder or Hub id with the config.json of the vision tower, for training checkpoints, whose config only names it.
        licence: for the card; by default what the source's card says.

    Raises:
        ValueError: not such a checkpoint, or one that does not match; one line says what and how to mend it. Nothing is written then.
    """
    check_empty(out)
    folder = fetch(source, revision)
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != SOURCE_TYPE:
        raise ValueError(
            f"{source} has model_type {raw.get('model_type')!r}: convert takes {SOURCE_TYPE!r}; a native one needs no converting"
        )
    base, alarm = rename(read_weights(folder))
    processor = native_processor(folder, raw)
    config = native_config(folder, raw, vision, processor.tokenizer)
    fields = alarm_fields(raw, processor.tokenizer) if alarm else {}
    cls = FAMILY.model if alarm else FAMILY.base_model
    full = build.alarm_config(FAMILY, config, fields) if alarm else config
    head_missing = bool(alarm) and not any(key.startswith("alarm_heads.") for key in alarm)
    match(base, alarm, cls, full, head_missing)

    model = build.load(
        cls,
        full,
        None,
        new=("alarm_heads.",) if head_missing else (),
        rows=len(processor.tokenizer),
        state_dict=base | alarm,
        dtype=base["model.language_model.embed_tokens.weight"].dtype,
    )
    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'generation_config.json'} cannot be used: {first_line(error)}") from error
    facts = {"license": licence} if licence else build.base_licence(source, revision)
    name, made = build.name_of(source), f"Made by `videosafety convert` from {build.name_of(source)}"
    made += f"{f' at `{revision}`' if revision else ''}, in the authors' own format ({SOURCE_TYPE})."
    if alarm:
        build.set_template(processor, FAMILY, 1)
        told = [made, (HEADLESS if head_missing else TRAINED) + TEXT_ONLY]
        return build.write(model, processor, out, build.card(f"{name}, converted", told, model, base=source, facts=facts))
    return build.save(model, processor, out, build.front(source, facts, []) + f"# {name}, converted\n\n{made}\n")


TRAINED = """The alarm heads are those of the checkpoint (its second stage). Measure them before you rely on them:
`videosafety guard calibrate`. """
HEADLESS = """**The checkpoint has alarm vectors but no heads (the authors' code drops them after the second stage): those here are
untrained, and their probabilities mean nothing.** """
TEXT_ONLY = "Prompts without visuals get the alarm vectors too, as in training; in the authors' generate() they do not."


# --- config and processor --------------------------------------------------------------------------------------------------------


def native_config(folder: Path, raw: dict[str, Any], vision: str | Path | None, tokenizer: Any) -> VideoLlama3Config:
    """The native config of an authors' one.

    Raises:
        ValueError: the vision tower's numbers are nowhere to be found.
    """
    known = Qwen2Config().to_dict().keys() - {"model_type", "architectures", "dtype", "transformers_version"}
    text = {key: value for key, value in raw.items() if key in known or key in ("rope_theta", "rope_scaling")}
    tower = raw.get("vision_encoder_config")
    if vision is not None or not tower:
        tower = _vision_config(folder, raw, vision)
    fields = VideoLlama3VisionConfig().to_dict().keys() - {"model_type", "architectures", "dtype", "transformers_version"}
    return VideoLlama3Config(
        text_config={"model_type": "qwen2"} | text,
        vision_config={key: value for key, value in tower.items() if key in fields},
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        **{field: tokenizer.convert_tokens_to_ids(token) for field, token in PLACEHOLDERS.items()},
    )


def _vision_config(folder: Path, raw: dict[str, Any], vision: str | Path | None) -> dict[str, Any]:
    """config.json of the vision tower: of `vision`, else of what a training checkpoint's config names."""
    named = vision or raw.get("mm_vision_encoder") or raw.get("vision_encoder")
    try:
        if not named:
            raise ValueError("the config names no vision encoder")
        return read_json(fetch(named, weights=False) / "config.json")
    except ValueError as error:
        wanted = "give the folder or Hub id of its vision encoder with --vision (DAMO-NLP-SG/VL3-SigLIP-NaViT for the published models)"
        raise ValueError(f"{folder}: the config lacks the vision tower's sizes, {wanted}: {error}") from error


def alarm_fields(raw: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """ALARM_FIELDS of a training checkpoint.

    Raises:
        ValueError: the tokenizer lacks the tokens, or has them under other ids than the config.
    """
    vocab = tokenizer.get_vocab()
    ids = [vocab.get(VISUAL_ALARM), vocab.get(TEXTUAL_ALARM)]
    named = [raw.get("visual_alarm_token_id", ids[0]), raw.get("textual_alarm_token_id", ids[1])]
    if None in ids or ids != named:
        raise ValueError(
            f"the tokenizer has the alarm tokens as {ids}, the config as {named}: take the tokenizer saved with the checkpoint"
        )
    weights = (float(raw.get("lambda_1", 0.1)), float(raw.get("lambda_2", 0.1)))
    return dict(zip(build.ALARM_FIELDS, (*ids, 1, weights, "paper_init"), strict=True))


def native_processor(folder: Path, raw: dict[str, Any]) -> VideoLlama3Processor:
    """The native processor with the authors' pixel budget, normalisation and frame sampling.

    The two size an image by the same rule; their budget for several images in one prompt together is ours for each.

    Raises:
        ValueError: no tokenizer.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):  # of nothing, transformers makes an empty one
        raise ValueError(f"{folder} has no tokenizer.json or vocab.json: copy the tokenizer files there")
    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} has a tokenizer that cannot be read: {first_line(error)}") from error
    tokenizer.chat_template = None  # theirs has another placeholder
    tokenizer.add_tokens([token for token in PLACEHOLDERS.values() if token not in tokenizer.get_vocab()], special_tokens=True)
    files = [folder / "preprocessor_config.json", folder / "processor_config.json"]
    pixels, frames = (read_json(file) if file.is_file() else {} for file in files)
    parts: dict[str, Any] = {}
    if pixels:  # without the file, a training checkpoint: its image processor is the vision tower's, which normalises as native does
        parts = {"image_mean": pixels.get("image_mean") or OPENAI_CLIP_MEAN, "image_std": pixels.get("image_std") or OPENAI_CLIP_STD}
    size = {key: int(pixels.get(key, default)) for key, default in PIXELS.items()}
    told = {key: frames.get(key, raw.get(key, default)) for key, default in FRAMES.items()}

    def kind(merge: int) -> dict[str, Any]:
        area = (size["patch_size"] * merge) ** 2
        edges = {"shortest_edge": size["min_tokens"] * area, "longest_edge": size["max_tokens"] * area}
        return {"size": edges, "merge_size": merge, "patch_size": size["patch_size"], **parts}

    return VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(**kind(int(told["image_merge_size"]))),
        video_processor=VideoLlama3VideoProcessor(
            **kind(int(told["video_merge_size"])),
            fps=told["fps"],
            max_frames=int(told["max_frames"]),
            use_token_compression=bool(raw.get("use_token_compression", True)),
        ),
        tokenizer=tokenizer,
        chat_template=(TEMPLATES / "videollama3.jinja").read_text(encoding="utf-8"),
    )


def match(base: Tensors, alarm: Tensors, cls: Any, config: Any, head_missing: bool) -> None:
    """Raises ValueError where the tensors are not exactly the model's, or tied embeddings are not equal."""
    with torch.device("meta"):
        wanted = cls(config).state_dict()
    tied, embed = config.tie_word_embeddings, "model.language_model.embed_tokens.weight"
    optional = [key for key in wanted if key.startswith("alarm_heads.")] if head_missing else []
    check(base | alarm, wanted, optional + (["lm_head.weight"] if tied else []))
    if tied and "lm_head.weight" in base and not torch.equal(base["lm_head.weight"], base[embed]):
        raise ValueError(
            "the config ties lm_head to the embeddings, but the checkpoint has two different matrices: set tie_word_embeddings"
        )
