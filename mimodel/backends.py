"""Other ways of computing a frozen encoder: the same vectors, sooner.

`folded` is torch with each BatchNorm folded into the convolution before it and the convolutions'
weights in bfloat16 where the processor multiplies it; it needs nothing more. `onnxruntime` and
`openvino` are extras. All are compared with eager float32 in the tests (cosine at least 0.9999);
`benchmarks/test_embedding.py` says how fast each is on a machine.
"""

import copy
from collections.abc import Callable
from enum import StrEnum
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mimodel.artifact import Artifact
from mimodel.errors import ArtifactError
from mimodel.networks import Encoder, inference_dtype

Vectors = npt.NDArray[np.float32]
Embed = Callable[[npt.NDArray[np.floating]], Vectors]
"""From reflectance (N, band, H, W), bands as the artifact has them, to vectors (N, dim)."""
Encode = Callable[[Tensor], Vectors]
"""The same from normalised images, of which a few at a time fit into the cache."""

_CHUNK = 32


class Backend(StrEnum):
    """How an encoder is computed."""

    EAGER = "eager"
    FOLDED = "folded"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


def embedder(artifact: Artifact, representation: str, backend: Backend) -> Embed:
    """What `artifact.embed` does, by another backend; `ArtifactError` where it is not installed."""
    artifact.check_representation(representation)
    if backend is Backend.EAGER:
        return lambda patches: artifact.embed(patches, representation=representation)
    networks = artifact.networks
    encoder = networks.encoder
    if representation == "exclusive" and networks.exclusive_encoder is not None:
        encoder = networks.exclusive_encoder
    makers: dict[Backend, Callable[[Encoder], Encode]] = {
        Backend.FOLDED: folded,
        Backend.ONNXRUNTIME: by_onnxruntime,
        Backend.OPENVINO: by_openvino,
    }
    try:
        encode = makers[backend](encoder)
    except ModuleNotFoundError as error:
        extra = "onnx" if backend is Backend.ONNXRUNTIME else backend.value
        raise ArtifactError(
            f"the backend {backend.value} needs the package {error.name}; install crossmi[{extra}]"
        ) from error

    def embed(patches: npt.NDArray[np.floating]) -> Vectors:
        images = artifact.network_input(patches, None)
        return np.concatenate([encode(part) for part in images.split(_CHUNK)])

    return embed


def folded(encoder: Encoder) -> Encode:
    """torch, with fewer and smaller operations."""
    convolutions = fold_batch_norm(encoder).to(memory_format=torch.channels_last)
    dtype = inference_dtype(torch.device("cpu"))
    convolutions.to(dtype)
    output = encoder.output

    @torch.inference_mode()
    def encode(images: Tensor) -> Vectors:
        features = convolutions(images.to(dtype, memory_format=torch.channels_last))
        return cast(Vectors, output(features.flatten(1).float()).numpy())

    return encode


def fold_batch_norm(encoder: Encoder) -> nn.Sequential:
    """The convolutions of a frozen encoder, each with the BatchNorm after it in its weights."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(encoder.convolutions).eval():
        if isinstance(layer, nn.BatchNorm2d):
            before = layers.pop()
            assert isinstance(before, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(before, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False)


def by_onnxruntime(encoder: Encoder) -> Encode:
    """ONNX Runtime on the CPU, float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        to_onnx(encoder), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: cast(
        Vectors, session.run(None, {"images": images.contiguous().numpy()})[0]
    )


def to_onnx(encoder: Encoder) -> bytes:
    """The encoder as an ONNX model, from `images` (N, band, H, W) to `vectors` (N, dim)."""
    program = torch.onnx.export(
        _plain(encoder),
        (_example(encoder),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["vectors"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    model: bytes = program.model_proto.SerializeToString()
    return model


def by_openvino(encoder: Encoder) -> Encode:
    """OpenVINO on the CPU, in bfloat16 where the processor multiplies it."""
    import openvino

    core = openvino.Core()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        _plain(encoder), (_example(encoder),), dynamic_shapes=({0: batch},)
    )
    model: Any = openvino.convert_model(program)
    precision = {torch.bfloat16: "bf16", torch.float32: "f32"}
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision[inference_dtype(torch.device("cpu"))],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    return lambda images: np.array(compiled(images.contiguous().numpy())[0], np.float32)


def _plain(encoder: Encoder) -> nn.Module:
    """Images to vectors and nothing else, in the plainest layers."""
    output = copy.deepcopy(encoder.output)
    return nn.Sequential(fold_batch_norm(encoder), nn.Flatten(), output).eval()


def _example(encoder: Encoder) -> Tensor:
    height, width = encoder.spec.image_size
    return torch.zeros(2, encoder.spec.in_channels, height, width)
