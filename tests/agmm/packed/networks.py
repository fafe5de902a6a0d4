"""Small networks with weights, statistics and gates as if trained, of every kind that has a packed form."""

from itertools import pairwise

import numpy as np
import torch

import agmm.models as models
from agmm.packed import reference
from agmm.packed.artifact import Artifact
from agmm.packed.description import Block, Description, Input, Neuron, Stem, Tail
from agmm.packed.pack import About

# name: architecture, its arguments, input [H, W, C] or [T, H, W, C]
NETWORKS = {
    "resnet19": ("agmm_resnet19", {"depths": (2, 1, 1), "width": 9, "num_steps": 2}, (12, 12, 3)),
    "resnet18": ("agmm_resnet18", {"depths": (1, 2), "width": 8, "num_steps": 3}, (37, 35, 3)),
    "odd": ("agmm_resnet19", {"depths": (1, 1, 1), "width": 65, "num_steps": 1}, (9, 7, 3)),
    "vanilla": ("agmm_resnet19", {"depths": (2, 1), "width": 8, "method": "vanilla", "num_steps": 2}, (8, 8, 3)),
    "channel_gate": ("agmm_resnet19", {"depths": (2, 1), "width": 8, "gate_scope": "channel"}, (8, 8, 3)),
    "constant_gate": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "gate_kind": "constant"}, (8, 8, 3)),
    "backward_gate": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "gate_kind": "backward_only"}, (8, 8, 3)),
    "tebn": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "norm": "tebn", "num_steps": 3}, (8, 8, 3)),
    "soft_if": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "neuron": "if", "reset": "soft"}, (8, 8, 3)),
    "plif": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "neuron": "plif", "leak": 0.3}, (8, 8, 3)),
    "rate_if": ("agmm_resnet19", {"depths": (2, 1), "width": 8, "neuron": "rate_if", "method": "vanilla"}, (8, 8, 3)),
    "q_snn": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "method": "q_snn"}, (8, 8, 3)),
    "recu": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "method": "recu"}, (8, 8, 3)),
    "learned": ("agmm_resnet19", {"depths": (1, 1), "width": 8, "method": "xnor_learned"}, (8, 8, 3)),
    "vggsnn": ("agmm_vggsnn", {"width": 3, "num_steps": 3, "threshold": 0.25}, (3, 48, 48, 2)),
    "vggsnn_odd": ("agmm_vggsnn", {"width": 2, "num_steps": 2, "in_chans": 3, "threshold": 0.25}, (50, 43, 3)),
}


def make_network(name, seed=0):
    """The network in evaluation mode; its weights include zeros of both signs."""
    arch, arguments, _ = NETWORKS[name]
    torch.manual_seed(seed)
    network = models.create_model(arch, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            if key.endswith(("alpha", "factor", "running_var")) or (value.ndim == 1 and key.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif key.endswith(("bias", "running_mean")):
                value.normal_(0, 0.3)
            elif key.endswith("level"):
                value.fill_(0.7)
            elif key.endswith("conv.weight"):
                value.flatten()[:2] = torch.tensor([0.0, -0.0])
    return network


def about(name):
    """What its artifact says beside the network."""
    shape = NETWORKS[name][2]
    frames = len(shape) == 4
    norm = () if frames else (0.5,) * shape[-1]
    taken = Input(channels=shape[-1], height=shape[-3], width=shape[-2], frames=frames, mean=norm, std=norm)
    return About(name, NETWORKS[name][0], taken, tuple("abcde"))


def make_images(name, count=4, seed=1):
    """Normalised images [B, H, W, C], or counts of events [B, T, H, W, C]."""
    shape = NETWORKS[name][2]
    generator = np.random.default_rng(seed)
    drawn = generator.poisson(0.3, (count, *shape)) if len(shape) == 4 else generator.normal(0, 1, (count, *shape))
    return drawn.astype(np.float32)


def any_description(generator):
    """One that no architecture of ours has: every choice that a description has, at random."""
    frames, steps = bool(generator.integers(2)), int(generator.integers(1, 4))
    sizes = [int(generator.choice([1, 2, 7, 31, 32, 33, 65])) for _ in range(5)]
    norm = () if frames else tuple(generator.uniform(0.2, 0.8, 3))
    tail = Tail(kind="spikes", neuron=any_neuron(generator), pool=bool(generator.integers(2)), grid=3)
    return Description(
        name="any",
        arch="any",
        time_steps=steps,
        num_classes=3,
        input=Input(channels=3, height=int(generator.integers(5, 20)), width=11, frames=frames, mean=norm, std=norm),
        stem=Stem(
            channels=sizes[0],
            kernel=int(generator.choice([1, 3, 5, 7])),
            stride=int(generator.integers(1, 3)),
            max_pool=bool(generator.integers(2)),
        ),
        blocks=tuple(any_block(generator, *pair) for pair in pairwise(sizes)),
        tail=tail if generator.integers(2) else Tail(kind="mean"),
        norm_per_step=bool(generator.integers(2)),
    )


def any_neuron(generator):
    reset = "soft" if generator.integers(2) else "hard"
    leak, start, amplitude = generator.uniform(0.2, 0.9, 3)
    return Neuron(leak=leak, threshold=1.0, reset=reset, start=start, amplitude=amplitude)


def any_block(generator, ins, outs):
    shortcut = str(generator.choice(["none", "projection"] + ["identity"] * 2 * (ins == outs)))
    return Block(
        in_channels=ins,
        out_channels=outs,
        stride=1 if shortcut == "identity" else int(generator.integers(1, 3)),
        neuron=any_neuron(generator),
        pool=shortcut == "none" and bool(generator.integers(2)),
        gate=str(generator.choice(["none", "sample", "channel"])),
        shortcut=shortcut,
    )


def any_tensor(generator, name, kind, shape):
    if kind == "U8":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    if name.endswith("affine"):
        return generator.uniform([[[0.1]], [[-0.3]]], [[[0.5]], [[0.8]]], shape)
    return (generator.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype({"F32": "f4", "F64": "f8"}[kind])


def any_artifact(seed):
    generator = np.random.default_rng(seed)
    description = any_description(generator)
    tensors = {name: any_tensor(generator, name, *shape) for name, shape in description.shapes().items()}
    for number, block in enumerate(description.blocks):
        signs = reference.unpack_signs(tensors[f"blocks.{number}.signs"], block.in_channels)
        tensors[f"blocks.{number}.signs"] = reference.pack_signs(signs)  # without bits in the padding
    return Artifact(description, tensors)
