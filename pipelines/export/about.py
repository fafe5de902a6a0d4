"""What an export says of a model beside its network."""

from __future__ import annotations

from agmm.packed.artifact import Artifact, from_bytes, to_bytes
from agmm.packed.description import Input, Source
from agmm.packed.pack import About, pack
from pipelines.errors import UserError
from pipelines.registry import Model


def about(model: Model) -> About:
    """What an artifact says of a model beside its network. Raises UserError for an input that no artifact has."""
    card = model.card
    frames = card.frames is not None
    if not frames and card.model.in_chans != len(card.data.mean):
        raise UserError(f"Cannot export {model.uri}: it takes images of {card.model.in_chans} channels, not RGB.")
    height, width = card.input_shape[-2:] if frames else card.input_shape[:2]
    taken = Input(
        channels=card.model.in_chans,
        height=height,
        width=width,
        frames=frames,
        crop_ratio=card.data.crop_ratio,
        mean=() if frames else card.data.mean,
        std=() if frames else card.data.std,
    )
    source = Source(
        model=model.uri, run_id=card.run_id, weights_sha256=card.weights_sha256, code_version=card.code_version
    )
    return About(card.name, card.model.arch, taken, tuple(card.classes), source)


def packed(model: Model) -> Artifact:
    """The model as an artifact, as it would be read back. Raises NotPackable, `artifact.Refused` and UserError."""
    return from_bytes(to_bytes(pack(model.network, about(model))), model.uri)
