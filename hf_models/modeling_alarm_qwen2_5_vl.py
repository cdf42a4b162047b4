"""Qwen2.5-VL with alarm tokens."""

from transformers import GenerationMixin, Qwen2_5_VLForConditionalGeneration

from .alarm_core import AlarmModelMixin
from .configuration_alarm_qwen2_5_vl import AlarmQwen2_5_VLConfig


class AlarmQwen2_5_VLForConditionalGeneration(AlarmModelMixin, Qwen2_5_VLForConditionalGeneration, GenerationMixin):
    """`forward` also takes alarm_labels (batch, 2) and returns alarm_logits, alarm_probs and alarm_loss; see `AlarmModelMixin`."""

    config_class = AlarmQwen2_5_VLConfig
    config: AlarmQwen2_5_VLConfig
    _auto_class = "AutoModelForImageTextToText"
