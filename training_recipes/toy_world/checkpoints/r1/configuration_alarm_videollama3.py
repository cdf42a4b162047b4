"""Config of VideoLlama3 with alarm tokens."""

from transformers import VideoLlama3Config


class AlarmVideoLlama3Config(VideoLlama3Config):
    """VideoLlama3Config and: the first id of each kind of alarm token, tokens a modality, loss weights λ, how vectors start."""

    model_type = "alarm_video_llama_3"
    _auto_class = "AutoConfig"

    visual_alarm_token_id: int | None = None
    textual_alarm_token_id: int | None = None
    alarm_tokens_per_modality: int = 1
    alarm_loss_weights: list[float] | tuple[float, ...] = (0.1, 0.1)
    alarm_init: str = "mean"  # or "paper_init": zeros
