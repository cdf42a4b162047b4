"""Qwen3-VL with alarm tokens."""

from transformers import GenerationMixin, Qwen3VLForConditionalGeneration

from .alarm_core import AlarmModelMixin
from .configuration_alarm_qwen3_vl import AlarmQwen3VLConfig


class AlarmQwen3VLForConditionalGeneration(AlarmModelMixin, Qwen3VLForConditionalGeneration, GenerationMixin):
    """`forward` also takes alarm_labels (batch, 2) and returns alarm_logits, alarm_probs and alarm_loss; see `AlarmModelMixin`."""

    config_class = AlarmQwen3VLConfig
    config: AlarmQwen3VLConfig
    _auto_class = "AutoModelForImageTextToText"
