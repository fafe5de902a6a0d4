"""A trained network as one ONNX file of float32: for other runtimes, not for size. Each sign has 32 bits in it.

The graph takes `images`, float32: normalised `[B, C, H, W]`, or frames `[B, T, C, H, W]` of events; B is any. It gives
`logits`, `[B, K]`, the mean over T. H, W and T are the network's. Steps are unrolled.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agmm.export.agreement import Agreement, Frozen, agree, channels_first, checked_inputs, in_batches, logits
from agmm.export.extras import need
from agmm.models import SpikingNetwork
from agmm.packed.files import whole
from agmm.packed.pack import About

_OPSET = 20


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes: 32 bits a sign, where the artifact has 1.
        agreement: how onnxruntime's answers compare with the network's.

    """

    path: Path
    size: int
    agreement: Agreement


def write_onnx(network: SpikingNetwork, about: About, path: Path, images: NDArray[Any]) -> OnnxExport:
    """Write `network` to `path`, whole or not at all, after onnx's checker and a run by onnxruntime.

    Args:
        network: trained.
        about: what the file says of it, in its metadata.
        path: of the file; its folder is made.
        images: normalised `[B, H, W, C]`, or frames `[B, T, H, W, C]`, to compare on.

    Raises:
        agmm.export.extras.Missing: without onnx, onnxscript or onnxruntime.
        agmm.packed.verify.Differs: where onnxruntime answers otherwise; see `agmm.export.agreement.agree`.
        ValueError: for no images, or of another shape than `about` says. OSError: where the file cannot be written.

    """
    onnx, runtime = need("onnx"), need("onnxruntime")
    need("onnxscript")
    images = checked_inputs(images, about.input)
    model = _model(Frozen(network, torch.float32), images)
    onnx.helper.set_model_props(model, _properties(network, about))
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    truth, float32 = (logits(network, images, dtype) for dtype in (torch.float64, torch.float32))
    agreement = agree("The ONNX graph", _run(runtime, content, images), truth, float32)
    with whole(path) as partial:
        partial.write_bytes(content)
    return OnnxExport(path, len(content), agreement)


def _model(fixed: Frozen, images: NDArray[np.float32]) -> Any:
    example = torch.from_numpy(channels_first(images[:1])).repeat_interleave(2, dim=0)  # a batch of 1 would stay 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter of its own pytree
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            fixed.eval(),
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        del node.metadata_props[:]  # stack traces, with this machine's paths
    return model


def _properties(network: SpikingNetwork, about: About) -> dict[str, str]:
    return {
        "name": about.name,
        "arch": about.arch,
        "time_steps": str(network.num_steps),
        "preprocessing": about.input.model_dump_json(),
        "classes": json.dumps(about.classes),
        "source": about.source.model_dump_json(),
        "weights": "float32: signs of 1 bit, and their scales",
    }


def _run(runtime: Any, content: bytes, images: NDArray[np.float32]) -> NDArray[np.float64]:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return in_batches(lambda part: session.run(["logits"], {"images": channels_first(part)})[0], images)
