"""The networks, registered with timm on import, and timm's own ways to list and create them."""

from agmm import compat as compat  # torchvision, and so timm, beside a CPU-only torch: before timm

# isort: split
from timm import create_model as create_model
from timm import is_model as is_model
from timm import list_models as list_models

from agmm.models.network import SpikingNetwork as SpikingNetwork
from agmm.models.resnet import SpikingResNet as SpikingResNet
from agmm.models.resnet import agmm_resnet18 as agmm_resnet18
from agmm.models.resnet import agmm_resnet19 as agmm_resnet19
from agmm.models.resnet import agmm_resnet34 as agmm_resnet34
from agmm.models.vggsnn import VGGSNN as VGGSNN
from agmm.models.vggsnn import agmm_vggsnn as agmm_vggsnn
