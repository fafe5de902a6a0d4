"""What `mlflow.pyfunc.load_model` calls for a model of this package: no pickle, no code from the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import UserError
from pipelines.network import normalise
from pipelines.registry import Model, read_model

# Values that one pass of the network is given: 85 images of 32 x 32, one of 224 x 224 and more. Ten thousand images at
# once would take as many times the memory of their activations, and be no faster.
_VALUES_AT_ONCE = 1 << 18


class Predictor:
    """A batch in, logits out.

    Args:
        model: ready to predict.
        chunk: inputs that the network is given at once; default by their size, so that memory stays small.

    """

    def __init__(self, model: Model, chunk: int | None = None) -> None:
        self.model = model
        self._shape = model.card.input_shape
        self._chunk = chunk or max(1, _VALUES_AT_ONCE // int(np.prod(self._shape)))

    @torch.inference_mode()
    def predict(
        self,
        images: NDArray[np.uint8] | list[Any],
        params: dict[str, Any] | None = None,  # noqa: ARG002, MLflow passes it
    ) -> NDArray[np.float32]:
        """uint8 inputs at the card's resolution to mean logits over T, float32 `[B, K]`.

        RGB images `[B, H, W, 3]`, or event frames `[B, T, 2, H, W]` for a model trained on them; a nested list of whole
        numbers is as good. Raises UserError for any other shape or type.
        """
        batch = self._checked(images)
        logits_BK = np.empty((len(batch), self.model.card.model.num_classes), dtype=np.float32)
        for start in range(0, len(batch), self._chunk):
            part = slice(start, start + self._chunk)
            logits_BK[part] = self._logits(batch[part])
        return logits_BK

    def _checked(self, images: NDArray[np.uint8] | list[Any]) -> NDArray[np.uint8]:
        batch = images if isinstance(images, np.ndarray) else _from_list(images)
        axes = "[B, T, 2, H, W] = " if self.model.card.frames else "[B, H, W, 3] = "
        wanted = f"Give uint8 values {axes}[any, {', '.join(map(str, self._shape))}]."
        if batch.shape[1:] != self._shape or batch.ndim != len(self._shape) + 1:
            raise UserError(f"{self.model.card.name} cannot take an input of shape {list(batch.shape)}. {wanted}")
        if batch.dtype != np.uint8:
            raise UserError(f"{self.model.card.name} cannot take values of type {batch.dtype}. {wanted}")
        return batch

    def _logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(np.array(batch, order="C"))  # a copy: it may be read-only, or be seen backwards
        inputs = inputs if self.model.card.frames else inputs.permute(0, 3, 1, 2)
        logits_TBK = self.model.network(normalise(inputs, self.model.card.data, torch.device("cpu")))
        return logits_TBK.mean(0).numpy()


def _from_list(images: list[Any]) -> NDArray[Any]:
    """A nested list as an array, uint8 where all of it fits; raises UserError where it is no array at all."""
    try:
        batch = np.asarray(images)
    except ValueError as error:
        raise UserError(f"The inputs are not of one shape: {error}.") from error
    fits = np.issubdtype(batch.dtype, np.integer) and (batch.size == 0 or (batch.min() >= 0 and batch.max() <= 255))
    return batch.astype(np.uint8) if fits else batch


def _load_pyfunc(path: str) -> Predictor:
    return Predictor(read_model(Path(path), path))
