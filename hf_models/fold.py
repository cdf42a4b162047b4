"""From an alarm checkpoint to a plain one of its base architecture, for vLLM, SGLang and llama.cpp: vectors become embedding rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from videosafety.hf_models import build
from videosafety.hf_models.alarm_core import token_ids
from videosafety.hf_models.checkpoint import check_empty, fetch, read_json, read_weights
from videosafety.hf_models.families import FAMILIES, Family

HEADS_FILE = "alarm_heads.safetensors"
READER = Path(__file__).with_name("alarm_heads_reader.py")
# Whatever save_pretrained() of processors and tokenizers writes.
PROCESSOR_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*processor_config.json")
TEMPLATE_FILES = ("chat_template.*", "additional_chat_templates/*")


def fold(source: str | Path, out: Path, *, revision: str | None = None) -> Path:
    """Write the plain checkpoint of an alarm checkpoint to the folder `out`, and return it.

    Its logits are those of the alarm model, but for those of the alarm tokens themselves where the embeddings are tied: generate() never
    says these (suppress_tokens). The chat template still inserts the tokens. It has no probabilities: the heads lie beside it, in
    alarm_heads.safetensors, with a reader.

    Args:
        source: folder or Hub id of an alarm checkpoint; its code is not run. revision: commit, tag or branch of a Hub id.

    Raises:
        ValueError: not an alarm checkpoint, a broken one, or `out` is not empty. Nothing is written then.
    """
    check_empty(out)
    folder = fetch(source, revision)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{source} is a PEFT adapter: merge it into its base first (merge_and_unload, save_pretrained)")
    raw = read_json(folder / "config.json")
    kind = next((family for family in FAMILIES.values() if family.config.model_type == raw.get("model_type")), None)
    if kind is None:
        raise ValueError(f"{source} has model_type {raw.get('model_type')!r}: fold takes an alarm checkpoint, as build-alarm makes them")
    visual, textual = ids = token_ids(build.config_of(kind.config, raw))
    alarm = read_weights(folder, build.ALARM_WEIGHTS)
    vectors = alarm.pop("alarm_tokens.weight", None)
    heads = {key.removeprefix("alarm_heads."): tensor.contiguous() for key, tensor in alarm.items()}
    if vectors is None or len(vectors) != len(visual) + len(textual) or len(heads) != 4:
        raise ValueError(f"{source} lacks the vectors of its {len(visual) + len(textual)} alarm tokens, or a head: the folder is broken")

    ours = {*build.ALARM_FIELDS, *build.OF_THE_FILE}
    config = build.config_of(kind.base_config, {key: value for key, value in raw.items() if key not in ours})
    model = build.load(kind.base_model, config, folder)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[[*visual, *textual]] = vectors.to(rows.dtype)
    build.save(model, None, out, card(source, revision, ids, kind, bool(model.config.tie_word_embeddings)))
    copy_processor(folder, out, kind)
    told = {"visual_alarm_token_id": str(visual[-1]), "textual_alarm_token_id": str(textual[-1])}
    save_file(heads, out / HEADS_FILE, metadata=told)
    shutil.copyfile(READER, out / READER.name)
    return out


def copy_processor(folder: Path, out: Path, kind: Family) -> None:
    """The processor's files, which are native but for a class name of ours (SmolVLM) and what points to code."""
    for pattern in PROCESSOR_FILES + TEMPLATE_FILES:
        for file in folder.glob(pattern):
            target = out / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    for file in out.glob("*_config.json"):
        settings = read_json(file)
        if _without_code(settings):
            settings["processor_class"] = f"{kind.prefix}Processor"
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_code(settings: dict[str, Any]) -> bool:
    """Drop every `auto_map`, here and in the parts; whether there was one."""
    parts = [_without_code(part) for part in settings.values() if isinstance(part, dict)]
    return settings.pop("auto_map", None) is not None or any(parts)


def card(source: str | Path, revision: str | None, ids: tuple[list[int], list[int]], kind: Family, tied: bool) -> str:
    """The README.md of a folded checkpoint."""
    name, every = build.name_of(source), [*ids[0], *ids[1]]
    differ = "but for those of the alarm tokens themselves (the embeddings are tied)" if tied else "exactly"
    bias = json.dumps({str(token): -100 for token in every})
    parts = [
        build.front(source, build.base_licence(source, revision), ["alarm-tokens", "video", "safety"]) + f"# {name}, folded",
        f"Made by `videosafety fold` from {name}{f' at `{revision}`' if revision else ''}: a plain {kind.base_type} checkpoint. Its alarm "
        f"vectors are the embedding rows {every}; its logits are those of the alarm model, {differ}. No code of ours is needed.",
        "The chat template inserts the alarm tokens; without it the model is its base. `generate()` of transformers never says them "
        f'(`suppress_tokens`). Other servers read no such list: send `"logit_bias": {bias}` along.',
        f"There are no probabilities in it. `{HEADS_FILE}` holds the two heads, and `{READER.name}` reads p(harmful) of visuals and text "
        "off the last hidden states. Whether the heads are trained is told by the model it was made from.",
    ]
    if kind.name == "smolvlm":
        parts.append(SMOLVLM)
    return "\n\n".join(parts) + "\n"


SMOLVLM = """SmolVLM's own processor renders a built-in template, without alarm tokens, where a conversation has a video. Pass
`chat_template=processor.chat_template` to `apply_chat_template`, and the template file to a server (`--chat-template`)."""
