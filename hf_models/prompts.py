"""A prompt's tensors on their way into a model: what is cast and what is not, and which prompts show anything to the visual head.

A tool beside the published model files, not one of them; needs torch only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from videosafety.hf_models.alarm_core import token_ids

PIXELS = "pixel_values"  # how the names of pixel tensors begin; all else that is float, such as seconds, makes positions


def on_model(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The processor's tensors on the model's device, pixels in its dtype.

    Other float tensors keep theirs: of Qwen2.5-VL's `second_per_grid_ts` positions in time are made, and bfloat16 has 8 bits.
    """
    return {
        name: value.to(model.device, model.dtype if name.startswith(PIXELS) else value.dtype) if torch.is_tensor(value) else value
        for name, value in inputs.items()
    }


def shown(config: Any, input_ids: torch.Tensor) -> list[bool]:
    """Which prompts have a visual placeholder that the visual head sees: one before the visual alarm token that it reads.

    Attention is causal, and the token stands in the first user turn: what a later turn shows, it has not seen. Of a prompt without the
    token any placeholder counts.

    Args:
        config: of an alarm model. input_ids: (batch, length).

    Raises:
        ValueError: a config without alarm tokens.
    """
    ids = [value for name in ("image_token_id", "video_token_id") if isinstance(value := getattr(config, name, None), int)]
    before = (input_ids == token_ids(config)[0][-1]).cumsum(-1) == 0
    return (torch.isin(input_ids, torch.tensor(ids, device=input_ids.device)) & before).any(-1).tolist()
