"""From any checkpoint of a known family to its alarm checkpoint: tokens, ids, template, code and weights in one folder."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import PreTrainedConfig
from transformers.utils import cached_file, logging
from yaml import YAMLError

from videosafety.hf_models.alarm_core import alarm_strings, token_ids
from videosafety.hf_models.checkpoint import check_empty, first_line
from videosafety.hf_models.families import FAMILIES, Family, family_of

INITS = ("mean", "paper_init")
ALARM_FIELDS = ("visual_alarm_token_id", "textual_alarm_token_id", "alarm_tokens_per_modality", "alarm_loss_weights", "alarm_init")
OF_THE_FILE = ("auto_map", "architectures")  # of a config: what is written anew
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
ALARM_WEIGHTS = ("alarm_tokens.", "alarm_heads.")
UNTRAINED = """**The alarm heads are untrained: their probabilities mean nothing until AT-SFT.** Without alarm tokens in the prompt
the model computes what its base does."""


def build_alarm(
    base: str | Path,
    out: Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    init: str = "mean",
    per_modality: int = 1,
    licence: str | None = None,
    seed: int = 0,
) -> Path:
    """Write the alarm checkpoint of `base` to the folder `out`, and return it. Heads are untrained: probabilities mean nothing yet.

    Weights keep their dtype; the vectors and heads are float32. The embedding matrix grows only where it has no row for the new ids.

    Args:
        base: Hub id or folder of a plain checkpoint (safetensors) with its processor. revision: commit, tag or branch of a Hub id.
        family: a key of FAMILIES, for a `model_type` that belongs to none. init: how the vectors start, see INITS.
        per_modality: how many tokens the visuals and the text have, each. licence: for the card; by default what the base's card says.
        seed: of the heads, and of embedding rows that are added: two builds of one base are the same file.

    Raises:
        ValueError: an option, a base or a folder that cannot be used; one line says what to do. Nothing is written then.
    """
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}: there are {', '.join(INITS)}")
    if per_modality < 1:
        raise ValueError(f"tokens per modality must be 1 or more, got {per_modality}")
    check_empty(out)
    config, kind = plain_config(base, revision, family)
    processor = native_processor(base, revision, kind, config)
    ids = add_tokens(processor.tokenizer, per_modality)
    set_template(processor, kind, per_modality)
    fields = dict(zip(ALARM_FIELDS, (ids[0][0], ids[1][0], per_modality, (0.1, 0.1), init), strict=True))
    full = alarm_config(kind, config, fields)
    # By way of the base's own class: transformers renames the keys of older layouts, which most public checkpoints have, only for its own.
    plain = load(kind.base_model, config, base, revision=revision)
    weights = {"state_dict": plain.state_dict(), "dtype": plain.dtype}
    model = load(kind.model, full, None, new=ALARM_WEIGHTS, rows=1 + max(*ids[0], *ids[1]), seed=seed, **weights)
    model.generation_config = plain.generation_config
    facts = {"license": licence} if licence else base_licence(base, revision)
    made = f"Made by `videosafety build-alarm` from {name_of(base)}{f' at `{revision}`' if revision else ''}, family {kind.name}."
    text = card(f"{name_of(base)} with alarm tokens", [made, UNTRAINED], model, base=base, facts=facts)
    return write(model, processor, out, text)


# --- what is given ---------------------------------------------------------------------------------------------------------------


def plain_config(base: str | Path, revision: str | None, family: str | None) -> tuple[Any, Family]:
    """The config of a plain checkpoint, and its family.

    Raises:
        ValueError: an alarm, adapter, quantised or foreign checkpoint, nothing there, or no family of ours.
    """
    if (Path(base) / "adapter_config.json").is_file() and not (Path(base) / "config.json").is_file():
        raise ValueError(f"{base} is a PEFT adapter: merge it into its base first (merge_and_unload, save_pretrained)")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(base, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{base}: no config.json that can be read: {first_line(error)}") from error
    base_type = str(raw.get("model_type", ""))
    if not raw:
        raise ValueError(f"{base}: no config.json there: name a folder or Hub id of a checkpoint")
    if base_type.startswith("alarm_"):
        raise ValueError(f"{base} is an alarm checkpoint already ({base_type}): name the plain model it was made from")
    if base_type.startswith("videollama3"):
        raise ValueError(f"{base} is in the authors' own format ({base_type}): run videosafety convert first")
    if "quantization_config" in raw:
        raise ValueError(f"{base} is quantised: build from the full-precision checkpoint, quantise the result")
    kind = family_of(base_type, family)
    told = next((known.name for known in FAMILIES.values() if known.base_type == base_type), kind.name)
    if told != kind.name:
        raise ValueError(f"{base} has model_type {base_type!r}, which is family {told}, not {kind.name}: leave --family out")
    return config_of(kind.base_config, raw), kind


def native_processor(base: str | Path, revision: str | None, kind: Family, config: Any) -> Any:
    """The processor of a plain checkpoint, of transformers' own class, or of the family's where it needs one of its own (SmolVLM).

    Raises:
        ValueError: none there, or its tokenizer is not the model's.
    """
    own = Path(__file__).with_name(f"processing_alarm_{kind.name}.py").is_file()
    place = f"{__package__}.processing_alarm_{kind.name}" if own else "transformers"
    cls = getattr(importlib.import_module(place), f"Alarm{kind.prefix}Processor" if own else f"{kind.prefix}Processor")
    try:
        processor = cls.from_pretrained(base, revision=revision)
    except (OSError, ValueError, TypeError, ImportError) as error:  # a missing part is any of these
        raise ValueError(f"{base}: no {cls.__name__} there, which the family {kind.name} needs: {first_line(error)}") from error
    if len(processor.tokenizer) <= max(placeholders(config)):  # where its files are missing, transformers makes an empty one
        raise ValueError(f"{base}: no tokenizer there, or one that lacks the visual placeholders of the config: copy the model's own")
    return processor


def base_licence(base: str | Path, revision: str | None) -> dict[str, str]:
    """The licence fields (license, license_name, license_link) of the base's model card; empty where it has none."""
    try:
        file = cached_file(base, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
        data = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict() if file else {}
    except (OSError, ValueError, HfHubHTTPError, YAMLError):  # a card is a courtesy, never a reason to fail
        return {}
    return {key: str(data[key]) for key in ("license", "license_name", "license_link") if data.get(key)}


# --- what is made of it ----------------------------------------------------------------------------------------------------------


def add_tokens(tokenizer: Any, per_modality: int) -> tuple[list[int], list[int]]:
    """Add the alarm tokens where they are missing; the (visual, textual) ids.

    Raises:
        ValueError: the tokenizer has some of them, but not with consecutive ids.
    """
    kinds = alarm_strings(per_modality)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for kind in kinds for text in kind], special_tokens=True)
    visual, textual = (tokenizer.convert_tokens_to_ids(kind) for kind in kinds)
    if any(run != list(range(run[0], run[0] + per_modality)) for run in (visual, textual)):
        raise ValueError(f"the tokenizer has alarm tokens already, and their ids {visual} and {textual} do not follow one another")
    return visual, textual


def set_template(processor: Any, family: Family, per_modality: int) -> None:
    """Give the processor, and its tokenizer where that has one too, the family's alarm template.

    Raises:
        ValueError: no chat template: a base model without instruction tuning.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template is None and not family.own_template:
        raise ValueError("the processor has no chat template: alarm tokens need an instruct checkpoint")
    processor.chat_template = family.alarm_template(template or "", per_modality)
    if processor.tokenizer.chat_template is not None:
        processor.tokenizer.chat_template = processor.chat_template


def alarm_config(kind: Family, config: Any, fields: dict[str, Any]) -> Any:
    """The family's alarm config: that of a plain checkpoint and the ALARM_FIELDS."""
    return config_of(kind.config, {key: value for key, value in config.to_dict().items() if key not in OF_THE_FILE} | fields)


def config_of(cls: Any, values: dict[str, Any]) -> Any:
    """A config of class `cls` with these values, whatever model_type they name.

    Raises:
        ValueError: they are not such a config's.
    """
    try:
        return cls.from_dict(values | {"model_type": cls.model_type})
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"config.json does not fit {cls.__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No load report, warnings or progress bars of transformers inside; what was set before holds again after."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load(cls: Any, config: Any, base: str | Path | None, *, new: tuple[str, ...] = (), rows: int = 0, seed: int = 0, **options: Any) -> Any:
    """`cls` with every weight from `base` (or from state_dict=…), but for those whose names start with one of `new`; the embedding matrix
    grows to at least `rows`.

    Raises:
        ValueError: a weight is missing or has another shape: transformers would fill it with random numbers and only warn.
    """
    options = {"dtype": "auto", "use_safetensors": True, "ignore_mismatched_sizes": True} | options  # both are reported below
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, report = cls.from_pretrained(base, config=config, output_loading_info=True, **options)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{base or 'the checkpoint'}: the model cannot be loaded: {first_line(error)}") from error
        for prefix in new:
            # transformers keeps modules in float32 (_keep_in_fp32_modules_strict) only where they are in the file: these start anew.
            module = getattr(model, prefix.removesuffix(".")).float()
            for parameter in module.parameters():
                parameter._is_hf_initialized = False
            model._init_weights(module)
        if rows > model.get_input_embeddings().num_embeddings:
            # Most checkpoints have spare rows. What these ones hold is never embedded.
            model.resize_token_embeddings(rows, mean_resizing=False)
    bad = sorted(key for key in report["missing_keys"] if not key.startswith(new or ("\0",)))
    bad += sorted(str(key[0]) for key in report["mismatched_keys"])
    if bad:
        raise ValueError(
            f"{base or 'the checkpoint'}: {len(bad)} weights are missing or not of the shape that the config says: {', '.join(bad[:3])}, …"
        )
    return model.eval()


def placeholders(config: Any) -> list[int]:
    """The ids that stand for images and videos in a prompt."""
    return [value for name in ("image_token_id", "video_token_id") if isinstance(value := getattr(config, name, None), int)]


def suppress_tokens(model: Any) -> None:
    """Have generate() never say an alarm token or a visual placeholder: the latter would ask for an image that is not there."""
    visual, textual = token_ids(model.config)
    known = model.generation_config.suppress_tokens or []
    model.generation_config.suppress_tokens = sorted({*known, *visual, *textual, *placeholders(model.config)})


def write(model: Any, processor: Any, out: Path, text: str) -> Path:
    """Save an alarm model, its processor and its card to the folder `out`, and return it."""
    suppress_tokens(model)
    return save(model, processor, out, text)


def save(model: Any, processor: Any, out: Path, text: str) -> Path:
    """Save a model, its processor where it is not None, and its card to the folder `out`, and return it.

    Raises:
        ValueError: generation settings that transformers refuses to write. Nothing is written then.
    """
    settings = model.generation_config
    if not settings.do_sample:  # some public checkpoints set these all the same, which has no effect, and cannot be saved again
        for name in SAMPLING:
            setattr(settings, name, None)
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise ValueError(f"generation_config.json contradicts itself, mend it first: {first_line(error)}") from error
    with quiet():
        model.save_pretrained(out)
        if processor is not None:
            processor.save_pretrained(out)
    (out / "README.md").write_text(text, encoding="utf-8")
    return out


def name_of(base: str | Path) -> str:
    """A Hub id, or the name of a folder: a card never says where on a disk it was."""
    return Path(base).resolve().name if Path(base).exists() else str(base)


def card(title: str, paragraphs: list[str], model: Any, *, base: str | Path, facts: dict[str, str]) -> str:
    """The README.md of an alarm checkpoint: what it is, how it is loaded, its limits and licence."""
    visual, textual = token_ids(model.config)
    licence = facts.get("license_name") or facts.get("license") or "that of the base model, which its card did not name: look it up"
    parts = [
        front(base, facts, ["alarm-tokens", "video", "safety"]) + f"# {title}",
        *paragraphs,
        USE,
        f"Alarm tokens: visual {visual}, textual {textual}; vectors started as `{model.config.alarm_init}`. {LIMITS}",
        f"Licence of the weights: {licence}. The code files are Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def front(base: str | Path, facts: dict[str, str], tags: list[str]) -> str:
    """The front matter of a card: what the Hub indexes."""
    meta: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"} | ({"tags": tags} if tags else {})
    meta |= ({} if Path(base).exists() else {"base_model": str(base)}) | facts
    return f"---\n{ModelCardData(**meta).to_yaml()}\n---\n\n"


USE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

source = {"revision": "<commit>", "trust_remote_code": True}  # pin the commit: this runs code from the repository
model = AutoModelForImageTextToText.from_pretrained("<this repository>", **source)
processor = AutoProcessor.from_pretrained("<this repository>", **source)
inputs = processor.apply_chat_template(
    messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
model.alarm_probs(**inputs)  # p(harmful) of the visuals and of the text, from one prefill
```"""
LIMITS = """The visual token stands behind the visuals and
before the text: it sees only them. The textual one ends the first user turn: it sees visuals and text. Neither looks at later turns or at
answers. Method: arXiv 2505.16643."""
