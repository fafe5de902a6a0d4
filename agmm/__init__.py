"""Binary spiking neural networks with adaptive gradient modulation: 1-bit weights, 0/1 spikes.

`import agmm.models` registers the networks with timm, as in `timm.create_model("agmm_resnet18", num_classes=10)`.
This package alone imports nothing, so that `agmm.packed` runs without torch.
"""
