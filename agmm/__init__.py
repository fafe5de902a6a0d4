"""Binary spiking neural networks with adaptive gradient modulation: 1-bit weights, 0/1 spikes.

Importing this package registers the networks with timm:
`timm.create_model("agmm_resnet18", num_classes=10, num_steps=4)`.
"""

from agmm import models as models  # registers with timm
