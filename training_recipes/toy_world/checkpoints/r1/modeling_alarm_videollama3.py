"""VideoLlama3 with alarm tokens."""

from transformers import GenerationMixin, VideoLlama3ForConditionalGeneration

from .alarm_core import AlarmModelMixin
from .configuration_alarm_videollama3 import AlarmVideoLlama3Config


class AlarmVideoLlama3ForConditionalGeneration(AlarmModelMixin, VideoLlama3ForConditionalGeneration, GenerationMixin):
    """`forward` also takes alarm_labels (batch, 2) and returns alarm_logits, alarm_probs and alarm_loss; see `AlarmModelMixin`."""

    config_class = AlarmVideoLlama3Config
    config: AlarmVideoLlama3Config
    _auto_class = "AutoModelForImageTextToText"

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs):  # type: ignore[misc]
        """As in transformers (5.18 and later), with token compression done at once. Beams count features against placeholders before it
        otherwise, and fail (seen in 5.23)."""
        model_kwargs = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)  # type: ignore[misc]
        video, mask = model_kwargs["mm_encoder_outputs"].get("video"), model_kwargs.get("video_compression_mask")
        if video is not None and mask is not None:
            kept = mask.split([len(features) for features in video.pooler_output])
            video.pooler_output = [features[keep.to(features.device)] for features, keep in zip(video.pooler_output, kept, strict=True)]
            model_kwargs["video_compression_mask"] = None
        return model_kwargs
