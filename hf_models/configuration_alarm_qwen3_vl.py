"""Config of Qwen3-VL with alarm tokens."""

from transformers import Qwen3VLConfig


class AlarmQwen3VLConfig(Qwen3VLConfig):
    """Qwen3VLConfig and: the first id of each kind of alarm token, tokens a modality, loss weights λ, how vectors start."""

    model_type = "alarm_qwen3_vl"
    _auto_class = "AutoConfig"

    visual_alarm_token_id: int | None = None
    textual_alarm_token_id: int | None = None
    alarm_tokens_per_modality: int = 1
    alarm_loss_weights: list[float] | tuple[float, ...] = (0.1, 0.1)
    alarm_init: str = "mean"  # or "paper_init": zeros
