"""InternVL with alarm tokens."""

from transformers import GenerationMixin, InternVLForConditionalGeneration

from .alarm_core import AlarmModelMixin
from .configuration_alarm_internvl import AlarmInternVLConfig


class AlarmInternVLForConditionalGeneration(AlarmModelMixin, InternVLForConditionalGeneration, GenerationMixin):
    """`forward` also takes alarm_labels (batch, 2) and returns alarm_logits, alarm_probs and alarm_loss; see `AlarmModelMixin`."""

    config_class = AlarmInternVLConfig
    config: AlarmInternVLConfig
    _auto_class = "AutoModelForImageTextToText"
