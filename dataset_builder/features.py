"""DINOv2 features as fingerprints, for those who have the weights: what means the same lies close, not only what looks the same."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from videosafety.dataset_builder.config import ConfigError
from videosafety.dataset_builder.rows import digest

BITS = 256
_FRAMES = 4


class Features:
    """Sign projections of the mean class token of four frames: of 256 bits, a share of angle / pi differs (Charikar 2002).

    So 24 bits are a cosine of 0.957. Loading raises ConfigError where the folder holds no model that transformers knows.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        try:
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"filter.features: {folder} holds no weights that can be loaded ({str(error).splitlines()[0]})") from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device).eval()
        self._lock = threading.Lock()
        self._planes = np.random.default_rng(0).standard_normal((int(model.config.hidden_size), BITS))
        self.name = f"{model.config.model_type} {digest(sorted((f.name, f.stat().st_size) for f in folder.iterdir() if f.is_file()))}"

    def fingerprint(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] -> uint8 [32]."""
        import torch

        chosen = [frames[round(i * (len(frames) - 1) / (_FRAMES - 1))] for i in range(_FRAMES)]
        with self._lock, torch.inference_mode():
            inputs = self._processor(images=chosen, return_tensors="pt").to(self._device)
            tokens = self._model(**inputs).last_hidden_state[:, 0].float().mean(0).cpu().numpy()
        return np.packbits(tokens @ self._planes > 0)
