"""An untrained artifact and a running service on loopback, shared by the tests of the service."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from mimodel.artifact import Artifact, ArtifactSpec, HeadSpec, save_artifact
from mimodel.networks import (
    Classifier,
    ConvSpec,
    Encoder,
    EncoderSpec,
    GlobalStatistics,
    LocalStatistics,
)
from mimodel.normalisation import Normalisation

BANDS = ("B04", "B03", "B02", "B08")
CLASSES = ("water", "forest", "field")


def small_artifact(folder: Path, heads: dict[str, HeadSpec]) -> Artifact:
    """An untrained model that reads 64 x 64 patches of four bands, with few channels."""
    convolutions = tuple(
        ConvSpec(channels=channels, stride=stride, batch_norm=norm)
        for channels, stride, norm in [(8, 1, False), (8, 2, True), (16, 2, True), (16, 2, True)]
    )
    encoder = EncoderSpec(in_channels=4, image_size=(64, 64), convolutions=convolutions)
    torch.manual_seed(1)
    networks = nn.ModuleDict(
        {
            "encoder": Encoder(encoder),
            "global_statistics": GlobalStatistics(encoder),
            "local_statistics": LocalStatistics(encoder),
            "heads": nn.ModuleDict(
                {
                    name: Classifier(64, len(head.classes), head.hidden)
                    for name, head in heads.items()
                }
            ),
        }
    )
    spec = ArtifactSpec(
        name="untrained",
        encoder=encoder,
        normalisation=Normalisation(bands=BANDS, mean=(0.1,) * 4, std=(0.05,) * 4),
        representations={"shared": 64},
        alpha=0.5,
        beta=1.0,
        heads=heads,
    )
    return save_artifact(folder, spec, networks.state_dict(), "# Untrained\n")


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service") / "artifact"
    small_artifact(folder, {"cover": HeadSpec(classes=CLASSES, hidden=16)})
    return folder


@pytest.fixture(scope="session")
def artifact(artifact_folder: Path) -> Artifact:
    return Artifact.load(artifact_folder)


@pytest.fixture
def patches() -> npt.NDArray[np.float32]:
    """Three patches (3, 4, 64, 64) of plausible reflectance, the second with a hole."""
    pixels = np.random.default_rng(3).uniform(0.0, 0.5, (3, 4, 64, 64)).astype(np.float32)
    pixels[1, :, :16] = np.nan
    return pixels
