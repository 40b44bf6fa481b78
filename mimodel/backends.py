"""Other ways of computing a frozen encoder: the same vectors, sooner.

`folded` is torch with each BatchNorm folded into the convolution before it and the convolutions'
weights in bfloat16 where the processor multiplies it; it needs nothing more. `onnxruntime` and
`openvino` are extras, for which the encoder is exported once: what that made is kept
(`kept.py`). All are compared with eager float32 in the tests (cosine at least 0.9999);
`benchmarks/test_embedding.py` says how fast each is on a machine.
"""

import copy
import tempfile
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mimodel.artifact import Artifact
from mimodel.errors import ArtifactError
from mimodel.kept import kept
from mimodel.networks import Encoder, inference_dtype

Vectors = npt.NDArray[np.float32]
Embed = Callable[[npt.NDArray[np.floating]], Vectors]
"""From reflectance (N, band, H, W), bands as the artifact has them, to vectors (N, dim)."""
Encode = Callable[[Tensor], Vectors]
"""The same from normalised images, of which a few at a time fit into the cache."""

_CHUNK = 32
_LENGTH = 8


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
    try:
        encode = _encode(encoder, backend, artifact.representation_digest(representation))
    except ModuleNotFoundError as error:
        extra = "onnx" if backend is Backend.ONNXRUNTIME else backend.value
        raise ArtifactError(
            f"the backend {backend.value} needs the package {error.name}; install crossmi[{extra}]"
        ) from error

    def embed(patches: npt.NDArray[np.floating]) -> Vectors:
        images = artifact.network_input(patches, None)
        return np.concatenate([encode(part) for part in images.split(_CHUNK)])

    return embed


def _encode(encoder: Encoder, backend: Backend, digest: str) -> Encode:
    """`digest` is that of all weights, for what is kept of an export."""
    if backend is Backend.FOLDED:
        return folded(encoder)
    packages = {
        Backend.ONNXRUNTIME: ("onnxruntime", "onnx", "onnxscript"),
        Backend.OPENVINO: ("openvino",),
    }[backend]
    versions = [f"{name} {version(name)}" for name in ("crossmi", "torch", *packages)]
    key = [backend.value, digest, encoder.spec.model_dump_json(), *versions]
    if backend is Backend.ONNXRUNTIME:
        return by_onnxruntime(kept(key, ".onnx", lambda: to_onnx(encoder)))
    return by_openvino(kept(key, ".openvino", lambda: to_openvino(encoder)))


def folded(encoder: Encoder) -> Encode:
    """torch, with fewer and smaller operations."""
    convolutions = fold_batch_norm(encoder).to(memory_format=torch.channels_last)
    dtype = inference_dtype(torch.device("cpu"))
    convolutions.to(dtype)
    output = nn.Sequential(encoder.output, encoder.levels)

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


def by_onnxruntime(model: bytes) -> Encode:
    """ONNX Runtime on the CPU, float32, of what `to_onnx` made."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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


def by_openvino(model: bytes) -> Encode:
    """OpenVINO on the CPU, in bfloat16 where the processor multiplies it, of `to_openvino`."""
    import openvino

    core = openvino.Core()
    end = _LENGTH + int.from_bytes(model[:_LENGTH])
    weights = openvino.Tensor(np.frombuffer(model, np.uint8, offset=end))
    precision = {torch.bfloat16: "bf16", torch.float32: "f32"}
    compiled = core.compile_model(
        core.read_model(model[_LENGTH:end], weights),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision[inference_dtype(torch.device("cpu"))],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    return lambda images: np.array(compiled(images.contiguous().numpy())[0], np.float32)


def to_openvino(encoder: Encoder) -> bytes:
    """The encoder as a model of OpenVINO: the length of its XML in 8 bytes, the XML, the weights.

    OpenVINO writes two files; they are one here, so that there is never one without the other.
    """
    import openvino

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        _plain(encoder), (_example(encoder),), dynamic_shapes=({0: batch},)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        openvino.save_model(openvino.convert_model(program), file, compress_to_fp16=False)
        described, weights = file.read_bytes(), file.with_suffix(".bin").read_bytes()
    return len(described).to_bytes(_LENGTH) + described + weights


def _plain(encoder: Encoder) -> nn.Module:
    """Images to vectors and nothing else, in the plainest layers."""
    output = copy.deepcopy(encoder.output)
    return nn.Sequential(fold_batch_norm(encoder), nn.Flatten(), output, encoder.levels).eval()


def _example(encoder: Encoder) -> Tensor:
    height, width = encoder.spec.image_size
    return torch.zeros(2, encoder.spec.in_channels, height, width)
