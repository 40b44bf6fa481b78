"""The made world, once for all tests of sources."""

import pytest

from tests.s2pairs.made_world import World, make_world
from tests.s2pairs.same_pixels import Remembering


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world") / "products")


@pytest.fixture(scope="session")
def safe(made_world: World) -> Remembering:
    """Its products read from their folders, the truth for other sources."""
    return Remembering(made_world.catalogue())
