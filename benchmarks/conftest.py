"""The model that benchmarks ask, and the products that they read."""

import os
from pathlib import Path

import pytest

from benchmarks.products import FULL_PX, SMALL_PX, Products
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


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> Products:
    """Made ones of 1536 pixels a side; or those in the folder CROSSMI_BENCHMARK_PRODUCTS.

    Where that folder has none, they are made there at full size, which takes an hour.
    """
    kept = os.environ.get("CROSSMI_BENCHMARK_PRODUCTS")
    if kept:
        return Products.at(Path(kept), FULL_PX)
    return Products.at(tmp_path_factory.mktemp("made"), SMALL_PX)
