"""The model that benchmarks ask."""

from pathlib import Path

import pytest

from mimodel.artifact import Artifact, ArtifactSpec, Networks, save_artifact
from mimodel.networks import EncoderSpec
from mimodel.normalisation import Normalisation

BANDS = ("B04", "B03", "B02", "B08")


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table 8, untrained: the weights do not change the work."""
    spec = EncoderSpec.for_images(4)
    described = ArtifactSpec(
        name="untrained",
        encoder=spec,
        normalisation=Normalisation(bands=BANDS, mean=(0.1,) * 4, std=(0.05,) * 4),
        representations={"shared": 64},
        alpha=0.5,
        beta=1.0,
    )
    folder: Path = tmp_path_factory.mktemp("artifact") / "artifact"
    save_artifact(folder, described, Networks(described).state_dict(), "# Untrained\n")
    return folder


@pytest.fixture(scope="session")
def artifact(artifact_path: Path) -> Artifact:
    """The same, loaded."""
    return Artifact.load(artifact_path)
