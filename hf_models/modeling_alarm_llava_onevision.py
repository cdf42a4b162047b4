"""LLaVA-OneVision with alarm tokens."""

from transformers import GenerationMixin, LlavaOnevisionForConditionalGeneration

from .alarm_core import AlarmModelMixin
from .configuration_alarm_llava_onevision import AlarmLlavaOnevisionConfig


class AlarmLlavaOnevisionForConditionalGeneration(AlarmModelMixin, LlavaOnevisionForConditionalGeneration, GenerationMixin):
    """`forward` also takes alarm_labels (batch, 2) and returns alarm_logits, alarm_probs and alarm_loss; see `AlarmModelMixin`."""

    config_class = AlarmLlavaOnevisionConfig
    config: AlarmLlavaOnevisionConfig
    _auto_class = "AutoModelForImageTextToText"
