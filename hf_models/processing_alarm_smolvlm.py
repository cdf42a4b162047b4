"""SmolVLM's processor, with its own chat template for videos too. The one family that publishes a processor."""

from transformers import SmolVLMProcessor


class AlarmSmolVLMProcessor(SmolVLMProcessor):
    """Where a conversation has a video, SmolVLMProcessor renders a template built into transformers unless one is passed along: the alarm
    tokens would be missing without a word."""

    _auto_class = "AutoProcessor"

    def apply_chat_template(self, conversation, chat_template=None, **kwargs):  # type: ignore[override]
        return super().apply_chat_template(conversation, chat_template or self.chat_template, **kwargs)  # type: ignore[arg-type]
