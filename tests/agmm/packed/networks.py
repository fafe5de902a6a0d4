"""Small networks with weights, statistics and gates as if trained, of every kind that has a packed form."""

import numpy as np
import torch

import agmm.models as models
from agmm.packed.description import Input
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
