"""What `mlflow.pyfunc.load_model` calls for a model of this package: no pickle, no code from the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.network import normalise
from pipelines.registry import Model, read_model


class Predictor:
    """A NumPy batch in, logits out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.inference_mode()
    def predict(
        self,
        images: np.ndarray[Any, Any],
        params: dict[str, Any] | None = None,  # noqa: ARG002, MLflow passes it
    ) -> np.ndarray[Any, Any]:
        """uint8 inputs at the card's resolution to mean logits over T, float32 `[B, K]`.

        RGB images `[B, H, W, 3]`, or event frames `[B, T, 2, H, W]` for a model trained on them.
        """
        batch = torch.from_numpy(np.ascontiguousarray(images))
        batch = batch if self.model.card.frames else batch.permute(0, 3, 1, 2)
        logits_TBK = self.model.network(normalise(batch, self.model.card.data, torch.device("cpu")))
        return logits_TBK.mean(0).numpy()


def _load_pyfunc(path: str) -> Predictor:
    return Predictor(read_model(Path(path), path))
