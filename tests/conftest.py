"""What every test shares: where real data lie."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def crossmi_data() -> Path:
    """The folder of real data that CROSSMI_DATA names; tests that use it are marked `realdata`.

    Real data cannot be in the repository, so a machine without them skips. A wrong name fails:
    whoever gave one wants these tests to run.
    """
    folder = os.environ.get("CROSSMI_DATA")
    if not folder:
        pytest.skip("CROSSMI_DATA does not name a folder of real data")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"CROSSMI_DATA names {path.name!r}, which is not a folder")
    return path
