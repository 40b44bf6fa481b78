"""Embedding patches with an artifact, against the same encoder eager in float32."""

from typing import Any

import numpy as np
import pytest
import torch

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder, fold_batch_norm
from mimodel.networks import Encoder, inference_dtype


@pytest.mark.parametrize("form", ["eager float32", "artifact", *Backend, "torch.compile"])
@pytest.mark.parametrize("batch", [1, 32])
def test_embed(benchmark: Any, artifact: Artifact, batch: int, form: str) -> None:
    """Encoding, normalisation included but for the baseline; ratios are to eager float32."""
    benchmark.group = f"embedding 64x64x4, batch {batch}"
    patches = np.random.default_rng(0).uniform(0, 0.4, (batch, 4, 64, 64)).astype(np.float32)
    plain = Encoder(artifact.spec.encoder).eval().requires_grad_(False)
    plain.load_state_dict(artifact.networks.encoder.state_dict())
    normalised = torch.from_numpy(artifact.spec.normalisation(patches))

    def eager() -> Any:
        with torch.inference_mode():
            return plain(normalised).representation.numpy()

    if form == "eager float32":
        compute = eager
    elif form == "artifact":
        compute = lambda: artifact.embed(patches)  # noqa: E731
    elif form == "torch.compile":
        compute = _compiled(artifact, normalised)
    else:
        if form in (Backend.ONNXRUNTIME, Backend.OPENVINO):
            pytest.importorskip(form)
        embed = embedder(artifact, "shared", Backend(form))
        compute = lambda: embed(patches)  # noqa: E731
    found = benchmark.pedantic(compute, rounds=10, warmup_rounds=2)
    cosine = (found * eager()).sum(1) / np.linalg.norm(found, axis=1)
    cosine /= np.linalg.norm(eager(), axis=1)
    benchmark.extra_info["cosine"] = float(cosine.min())
    assert cosine.min() >= 0.9999


def _compiled(artifact: Artifact, images: torch.Tensor) -> Any:
    """What the folded form becomes under inductor with frozen weights; needs a C++ compiler."""
    from torch._inductor import config

    dtype = inference_dtype(torch.device("cpu"))
    convolutions = fold_batch_norm(artifact.networks.encoder).to(dtype)
    convolutions.to(memory_format=torch.channels_last)
    output = artifact.networks.encoder.output
    compiled = torch.compile(convolutions)

    def compute() -> Any:
        with torch.inference_mode(), config.patch(freezing=True):
            features = compiled(images.to(dtype, memory_format=torch.channels_last))
            return output(features.flatten(1).float()).numpy()

    return compute
