"""Read p(harmful) off a folded model: alarm_heads.safetensors on its last hidden states. Needs torch and safetensors only."""

import torch
from safetensors import safe_open


def alarm_probs(heads_file: str, input_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """(batch, 2): p(harmful) of the visuals and of the text, NaN where a prompt has no such token.

    input_ids: (batch, length). hidden_states: (batch, length, hidden), the last ones, after the final norm.
    """
    probs = []
    with safe_open(heads_file, "pt", device=str(hidden_states.device)) as heads:
        for kind in ("visual", "textual"):
            found = input_ids == int(heads.metadata()[f"{kind}_alarm_token_id"])
            state = hidden_states[torch.arange(len(found)), found.int().argmax(-1)].float()
            logit = state @ heads.get_tensor(f"{kind}.weight").float().T + heads.get_tensor(f"{kind}.bias").float()
            probs.append(logit.sigmoid().masked_fill(~found.any(-1, keepdim=True), torch.nan))
    return torch.cat(probs, -1)
