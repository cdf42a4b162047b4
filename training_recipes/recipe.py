"""What a stage's YAML says beside its trainer's own settings, and what every trainer makes of it: model, frozen parts, learning rates."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, Trainer, set_seed

from videosafety.hf_models import build
from videosafety.hf_models.checkpoint import fetch, first_line
from videosafety.hf_models.families import FAMILIES, Family
from videosafety.hf_models.fold import copy_processor
from videosafety.lmms_eval_tasks.data import cache_dir
from videosafety.lmms_eval_tasks.video import FrameCache, Sampling
from videosafety.training_recipes.collate import Encoder
from videosafety.training_recipes.data import fail, held_out_problems, load
from videosafety.training_recipes.run import dry_run, finish, train
from videosafety.training_recipes.schema import STAGES, Row

__all__ = ["ParamGroups", "Recipe", "dry_run", "encoder", "finish", "freeze", "load_model", "load_rows", "param_groups", "parse", "train"]

# Which part of a model a parameter belongs to: the first part that one of the name's components stands for.
PARTS = {
    "alarm_tokens": {"alarm_tokens"},
    "alarm_heads": {"alarm_heads"},
    "projector": {"projector", "multi_modal_projector", "connector", "merger", "deepstack_merger_list", "image_newline"},
    "vision": {"vision_model", "vision_tower", "visual"},
    "language_model": {"language_model", "text_model", "lm_head"},
}
# The language model's linear layers alone: bare names such as q_proj are in vision towers too.
LORA_TARGETS = r".*\b(language_model|text_model)\..*\b(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
DTYPES = ("float32", "bfloat16")
WHY_FLOAT32 = """steps of 1e-6 to 1e-5 vanish in it: 0.02 - 0.00001 is 0.02 again, so nothing would be learned and nothing would be said.
Weights that learn stay in float32; `bf16: true` in the recipe computes in bfloat16 (autocast) and keeps them. `dtype: bfloat16` is for
weights that are frozen, as the base is under LoRA (lora_rank above 0)."""


@dataclass
class Recipe:
    """One stage. In the YAML its keys stand beside those of the trainer's own config; the command line overrides both.

    Raises:
        ValueError: a value that cannot be, or values that contradict each other; the message names the key.
    """

    stage: str  # sft | at_sft | grpo | dpo; says which target and labels a row must have
    model: str  # folder or Hub id of the checkpoint to start from, with alarm tokens or without
    data: list[str]  # JSON Lines files of rows, see data.py
    train: list[str]  # the parts that learn, of PARTS; all others are frozen
    revision: str | None = None  # commit, tag or branch of a Hub id
    eval_data: list[str] | None = None  # JSON Lines files of held-out rows; needs eval_strategy too
    data_root: str = "."  # the folder that the rows' media paths are below
    fps: float = 1.0  # frames per second of video. Geometry is the same in every stage and in evaluation
    max_frames: int = 180
    max_pixels: int | None = None  # of a frame; null keeps its size
    dtype: str = "float32"  # in which weights are loaded; bfloat16 only where they are frozen
    attn_implementation: str | None = None  # as in transformers: sdpa, eager, flash_attention_2; null lets it choose
    alarm_token_lr: float | None = 1e-5  # the paper's value; null: learning_rate
    alarm_head_lr: float | None = 1e-5
    lora_rank: int = 0  # 0: all weights of the language model learn, if it is in `train`
    lora_alpha: int | None = None  # null: twice the rank
    dry_run: bool = False  # show what would be done, try one batch, and stop

    def __post_init__(self) -> None:
        for key in ("data", "train", "eval_data"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, list) or not all(isinstance(item, str) for item in value)):
                raise ValueError(f"{key} must be a list of texts, got {value!r}")
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if not self.data:
            raise ValueError("data is empty: name at least one JSON Lines file")
        if unknown := sorted(set(self.train) - set(PARTS)):
            raise ValueError(f"train names {', '.join(unknown)}; parts are {', '.join(PARTS)}")
        if "alarm_heads" in self.train and self.stage != "at_sft":
            raise ValueError(f"train names alarm_heads, which learn from labels in stage at_sft alone, not in {self.stage}: leave them out")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}")
        if self.lora_rank and ("language_model" not in self.train or set(self.train) & {"vision", "projector"}):
            raise ValueError("lora_rank needs language_model in train, and no vision or projector there: LoRA is for the language model")
        for key in ("alarm_token_lr", "alarm_head_lr"):
            if (rate := getattr(self, key)) is not None and not rate > 0:
                raise ValueError(f"{key} must be above 0 (to freeze a part leave it out of train), got {rate}")
        Sampling(self.fps, self.max_frames, self.max_pixels)  # checks them


def parse(argv: Sequence[str] | None, settings: Any, *more: Any) -> tuple[Any, ...]:
    """(Recipe, settings, *more) from `--config RECIPE.yaml` and the command line, which overrides it.

    Args:
        argv: None takes those of the process. settings: the trainer's config class. more: further dataclasses of the script.

    Raises:
        ValueError: a key that no class has, or a value that one refuses.
        SystemExit: what argparse refuses, which it says itself.
    """
    from trl import TrlParser  # here, since models and data need no TRL

    classes: Any = (Recipe, settings, *more)
    parser = TrlParser(classes)
    try:
        recipe, config, *rest = parser.parse_args_and_config(argv)
    except OSError as error:
        raise ValueError(f"--config {error.filename} cannot be read: {error.strerror}") from error
    if not recipe.train:
        raise ValueError(f"train is empty: name the parts that learn, of {', '.join(PARTS)}")
    if recipe.eval_data and config.eval_strategy == "no":
        raise ValueError("eval_data is there, and eval_strategy is `no`: set it to steps or epoch, or leave eval_data out")
    config.remove_unused_columns = False  # it would take every key of a row that the model's forward does not name, before the collator
    if config.data_seed is None:  # the order of rows would hang on the process's random state, and a resumed run's rows be others
        config.data_seed = config.seed
    set_seed(config.seed)  # LoRA's factors are drawn before there is a trainer
    return recipe, config, *rest


# --- data ------------------------------------------------------------------------------------------------------------------------


def load_rows(recipe: Recipe) -> tuple[list[Row], list[Row] | None]:
    """The rows to train on and those held out, checked, with all media there; before a model is loaded.

    Raises:
        DataError: every problem with its file and row, missing media, or held-out rows that are trained on too (by id, or by what they ask
            and show) or labelled otherwise.
    """
    rows = load(recipe.data, recipe.stage, recipe.data_root)
    if not recipe.eval_data:
        return rows, None
    held_out = load(recipe.eval_data, recipe.stage, recipe.data_root)
    fail(held_out_problems(rows, held_out))
    return rows, held_out


def encoder(recipe: Recipe, processor: Any) -> Encoder:
    """Encodes rows as the recipe samples them; decoded frames are kept below VIDEOSAFETY_CACHE_DIR, as in evaluation."""
    sampling = Sampling(recipe.fps, recipe.max_frames, recipe.max_pixels)
    return Encoder(processor, recipe.data_root, FrameCache(cache_dir() / "frames", sampling))


# --- model -----------------------------------------------------------------------------------------------------------------------


def load_model(recipe: Recipe) -> tuple[Any, Any]:
    """(model, processor), with the parts that do not learn frozen and LoRA put on where asked for.

    Alarm checkpoints load through our own classes, plain ones through those of transformers: no code of the checkpoint is run. For a frozen
    reference: `load_model(dataclasses.replace(recipe, train=[], lora_rank=0))`.

    Raises:
        ValueError: nothing there to load, a part in `train` that the model has not, or weights that learn in bfloat16.
    """
    if (Path(recipe.model) / "adapter_config.json").is_file() and not (Path(recipe.model) / "config.json").is_file():
        raise ValueError(f"model {recipe.model} is a PEFT adapter: merge it into its base first (merge_and_unload, save_pretrained)")
    options: dict[str, Any] = {"revision": recipe.revision, "trust_remote_code": False}
    try:
        raw, _ = PreTrainedConfig.get_config_dict(recipe.model, **options)
        family = next((found for found in FAMILIES.values() if found.config.model_type == raw.get("model_type")), None)
        kind = family.model if family else AutoModelForImageTextToText
        model = build.load(kind, None, recipe.model, dtype=recipe.dtype, attn_implementation=recipe.attn_implementation, **options)
        processor = _processor(recipe, family, model.config) if family else AutoProcessor.from_pretrained(recipe.model, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"model {recipe.model} cannot be started from: {first_line(error)}") from error
    # transformers 5 saves weights by the names that they came with, and those of older layouts (most public checkpoints of Qwen2.5-VL) are
    # none that a Trainer finds again when it resumes: it would only warn, and go on from the start.
    model._weight_conversions = []
    if recipe.lora_rank:
        model = _with_lora(model, recipe)
    else:
        freeze(model, recipe.train)
    require_float32(model)
    return model, processor


def _processor(recipe: Recipe, family: Family, config: Any) -> Any:
    """The processor of an alarm checkpoint, by its own files alone: beside a config.json that names code, transformers asks to run that."""
    with tempfile.TemporaryDirectory() as files:
        copy_processor(fetch(recipe.model, recipe.revision, weights=False), Path(files), family)
        return build.native_processor(files, None, family, config)


def part_of(name: str) -> str:
    """The part of PARTS that a parameter belongs to, by its name; wrappers' prefixes (DDP, PEFT) do not matter.

    Raises:
        ValueError: to none: an architecture that nobody has looked at.
    """
    words = set(name.split("."))
    for part, stands_for in PARTS.items():
        if words & stands_for:
            return part
    raise ValueError(f"the parameter {name} belongs to no part of {', '.join(PARTS)}: add its module to recipe.PARTS")


def freeze(model: Any, parts: Sequence[str]) -> None:
    """Let these parts of PARTS learn and no others (`requires_grad`).

    Raises:
        ValueError: the model has no parameter of one of them.
    """
    seen = set()
    for name, parameter in model.named_parameters():
        seen.add(part := part_of(name))
        parameter.requires_grad_(part in parts)
    if absent := sorted(set(parts) - seen):
        raise ValueError(f"train names {', '.join(absent)}, but the model has none: it has {', '.join(p for p in PARTS if p in seen)}")


def _with_lora(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    whole: list[str] = [part for part in ("alarm_tokens", "alarm_heads") if part in recipe.train]
    freeze(model, recipe.train)  # checks that the parts are there
    alpha = recipe.lora_alpha or 2 * recipe.lora_rank
    settings = LoraConfig(r=recipe.lora_rank, lora_alpha=alpha, target_modules=LORA_TARGETS, modules_to_save=whole or None)
    return get_peft_model(model, settings)


def require_float32(model: Any) -> None:
    """Raises ValueError where a parameter that learns is not float32."""
    low = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if low:
        raise ValueError(f"{len(low)} parameters are to learn in {model.get_parameter(low[0]).dtype}, {low[0]} for one, and {WHY_FLOAT32}")


# --- learning rates --------------------------------------------------------------------------------------------------------------


def param_groups(model: Any, recipe: Recipe, learning_rate: float, weight_decay: float, decayed: Sequence[str]) -> list[dict[str, Any]]:
    """The optimiser's groups: one for each part that learns, in two where some of its parameters (`decayed`, by name) decay.

    Each has `name`, the part. The language model's come first: the rate that transformers logs is that of the first group.
    """
    rates = {"alarm_tokens": recipe.alarm_token_lr, "alarm_heads": recipe.alarm_head_lr}
    found: dict[tuple[str, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((part_of(name), name in decayed), []).append(parameter)
    order = sorted(found, key=lambda key: (-list(PARTS).index(key[0]), not key[1]))
    return [
        {
            "params": found[part, decays],
            "lr": learning_rate if rates.get(part) is None else rates[part],
            "weight_decay": weight_decay if decays else 0.0,
            "name": part,
        }
        for part, decays in order
    ]


class ParamGroups:
    """Stands left of any Trainer: `class X(ParamGroups, GRPOTrainer)`. Takes `recipe`, gives the optimiser its groups, logs their rates.

    Raises:
        ValueError: weights that learn are not float32, or several GPUs in one process (DataParallel).
    """

    def __init__(self, *args: Any, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.rates: dict[str, float] = {}
        require_float32(self.model)  # type: ignore[attr-defined]
        if self.args.n_gpu > 1:  # type: ignore[attr-defined]
            raise ValueError("one process sees several GPUs: start the script with `accelerate launch`, a process for each GPU")

    def create_optimizer(self, model: Any = None) -> Any:
        trainer: Any = self
        if trainer.optimizer is None:
            model = trainer.model if model is None else model
            settings = trainer.args
            decayed = trainer.get_decay_parameter_names(model)
            groups = param_groups(model, self.recipe, settings.learning_rate, settings.weight_decay, decayed)
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(settings, model)
            trainer.optimizer_cls_and_kwargs = (optimizer, options | {"params": groups})
        return super().create_optimizer(model)  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Where transformers warns that a checkpoint to resume from lacks weights, refuse it; tied ones may be there by one name."""
        known = dict(self.model.named_parameters(remove_duplicate=False))  # type: ignore[attr-defined]
        there = {id(value) for name, value in known.items() if name not in load_result.missing_keys}
        if lost := [name for name in load_result.missing_keys if id(known.get(name)) not in there]:
            raise ValueError(f"the checkpoint to resume from lacks {len(lost)} weights, {lost[0]} for one: it is of another model")

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card: TRL's names neither the data nor the labels. `videosafety publish` writes one, from what the run recorded."""

    def _get_learning_rate(self) -> float:
        groups = self.optimizer.param_groups  # type: ignore[attr-defined]
        self.rates = {f"lr_{group['name']}": group["lr"] for group in groups if "name" in group}
        return super()._get_learning_rate()  # type: ignore[misc]

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As the trainer does, with the rates of alarm tokens and heads, `lr_<part>`, beside `learning_rate`."""
        if "learning_rate" in logs:
            logs |= {name: rate for name, rate in self.rates.items() if "alarm" in name}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
