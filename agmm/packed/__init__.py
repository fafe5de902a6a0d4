"""The 1-bit artifact of a trained network, and what runs it: no service, no GPU.

`load(path)(images)` gives logits. `agmm.packed.pack.pack` makes an artifact of a network, `agmm.packed.verify.verify`
holds the one against the other.
"""

from agmm.packed.artifact import Artifact as Artifact
from agmm.packed.artifact import Refused as Refused
from agmm.packed.runtime import Measured as Measured
from agmm.packed.runtime import Runtime as Runtime
from agmm.packed.runtime import load as load
