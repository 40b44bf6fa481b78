"""Embedding patches with an artifact, against the same encoder eager in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimodel.artifact import Artifact, ArtifactSpec, save_artifact
from mimodel.methods.infomax import SharedStage
from mimodel.networks import Encoder, EncoderSpec
from mimodel.normalisation import Normalisation

BANDS = ("B04", "B03", "B02", "B08")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Table 8, untrained: the weights do not change the work."""
    spec = EncoderSpec.for_images(4)
    networks = SharedStage(spec, alpha=0.5, beta=1.0, gamma=0.1, switched=True)
    described = ArtifactSpec(
        name="untrained",
        encoder=spec,
        normalisation=Normalisation(bands=BANDS, mean=(0.1,) * 4, std=(0.05,) * 4),
        representations={"shared": 64},
        alpha=0.5,
        beta=1.0,
    )
    folder: Path = tmp_path_factory.mktemp("artifact") / "artifact"
    return save_artifact(folder, described, networks.state_dict(), "# Untrained\n")


@pytest.mark.parametrize("form", ["eager float32", "artifact"])
@pytest.mark.parametrize("batch", [1, 32])
def test_embed(benchmark: Any, artifact: Artifact, batch: int, form: str) -> None:
    benchmark.group = f"embedding 64x64x4, batch {batch}"
    patches = np.random.default_rng(0).uniform(0, 0.4, (batch, 4, 64, 64)).astype(np.float32)
    plain = Encoder(artifact.spec.encoder).eval().requires_grad_(False)
    plain.load_state_dict(artifact.networks.encoder.state_dict())
    normalised = torch.from_numpy(artifact.spec.normalisation(patches))

    def eager() -> Any:
        with torch.inference_mode():
            return plain(normalised).representation.numpy()

    forms = {"eager float32": eager, "artifact": lambda: artifact.embed(patches)}
    found = benchmark.pedantic(forms[form], rounds=10, warmup_rounds=2)
    cosine = (found * eager()).sum(1) / np.linalg.norm(found, axis=1)
    cosine /= np.linalg.norm(eager(), axis=1)
    assert cosine.min() > 0.999
