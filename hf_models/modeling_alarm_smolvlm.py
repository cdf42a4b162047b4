"""SmolVLM with alarm tokens."""

from transformers import GenerationMixin, SmolVLMForConditionalGeneration

from .alarm_core import AlarmModelMixin
from .configuration_alarm_smolvlm import AlarmSmolVLMConfig


class AlarmSmolVLMForConditionalGeneration(AlarmModelMixin, SmolVLMForConditionalGeneration, GenerationMixin):
    """`forward` also takes alarm_labels (batch, 2) and returns alarm_logits, alarm_probs and alarm_loss; see `AlarmModelMixin`."""

    config_class = AlarmSmolVLMConfig
    config: AlarmSmolVLMConfig
    _auto_class = "AutoModelForImageTextToText"
