"""The families of video VLMs that can carry alarm tokens: one entry each. Not published with the weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videosafety.hf_models.alarm_core import alarm_strings

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of transformers and what its alarm models need beside `alarm_core`.

    base_type: `model_type` of its plain checkpoints. prefix: of its classes in transformers. place: where the prelude of the chat template
    puts the visual tokens (see templates/alarm_prelude.jinja). own_template: our templates/<name>.jinja stands in for the checkpoint's.
    """

    name: str
    base_type: str
    prefix: str
    place: str = "after"
    own_template: bool = False

    @property
    def config(self) -> Any:
        """The alarm config class."""
        return getattr(importlib.import_module(f"{__package__}.configuration_alarm_{self.name}"), f"Alarm{self.prefix}Config")

    @property
    def model(self) -> Any:
        """The alarm model class."""
        return getattr(importlib.import_module(f"{__package__}.modeling_alarm_{self.name}"), f"Alarm{self.prefix}ForConditionalGeneration")

    @property
    def base_model(self) -> Any:
        """transformers' own class."""
        return getattr(importlib.import_module("transformers"), f"{self.prefix}ForConditionalGeneration")

    @property
    def base_config(self) -> Any:
        return getattr(importlib.import_module("transformers"), f"{self.prefix}Config")

    def alarm_template(self, template: str, per_modality: int = 1) -> str:
        """The chat template `template` with alarm tokens. Rendered text is the template's own but for the tokens.

        Raises:
            ValueError: it has them already.
        """
        if "<|visual_alarm" in template:
            raise ValueError("this chat template has alarm tokens already: build from the plain model")
        if self.own_template:
            template = (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")
        visual, textual = ("".join(strings) for strings in alarm_strings(per_modality))
        prelude = (TEMPLATES / "alarm_prelude.jinja").read_text(encoding="utf-8")
        settings = {"visual": visual, "textual": textual, "place": self.place}
        return "".join(f"{{%- set {name} = '{value}' -%}}\n" for name, value in settings.items()) + prelude + template


FAMILIES = {
    family.name: family
    for family in (
        Family("videollama3", "video_llama_3", "VideoLlama3", place="marked", own_template=True),
        Family("qwen2_5_vl", "qwen2_5_vl", "Qwen2_5_VL"),
        Family("qwen3_vl", "qwen3_vl", "Qwen3VL"),
        Family("llava_onevision", "llava_onevision", "LlavaOnevision", place="first"),
        Family("smolvlm", "smolvlm", "SmolVLM"),
        Family("internvl", "internvl", "InternVL"),
    )
}


def family_of(base_type: str, name: str | None = None) -> Family:
    """The family `name`, or the one whose plain checkpoints have this `model_type`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name is not None and name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}: there are {', '.join(FAMILIES)}")
    found = FAMILIES[name] if name else next((family for family in FAMILIES.values() if family.base_type == base_type), None)
    if found is None:
        known = ", ".join(f"{family.base_type} ({family.name})" for family in FAMILIES.values())
        raise ValueError(f"model_type {base_type!r} belongs to no family with alarm tokens; there are {known}. Name one with --family.")
    return found
