"""What the tests of mimodel share."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mimodel.artifact import Artifact, HeadSpec
from tests.models import CLASSES, small_artifact


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("model") / "artifact"
    return small_artifact(folder, {"cover": HeadSpec(classes=CLASSES, hidden=32)})


@pytest.fixture(scope="session")
def patches() -> npt.NDArray[np.float32]:
    """Reflectance of five patches of the artifact's four bands."""
    rng = np.random.default_rng(0)
    return rng.uniform(0.0, 0.4, (5, 4, 64, 64)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a fresh artifact, for a test that damages it."""
    small_artifact(tmp_path / "artifact", {"cover": HeadSpec(classes=CLASSES, hidden=32)})
    return tmp_path / "artifact"
