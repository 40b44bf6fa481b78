"""What benchmarks read: products, the request for a cube of them, and a cube without products."""

import re
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from s2pairs.build import Request, choose, plan, scenes_of
from s2pairs.cube import Cube, create, open_cube, open_unchanged
from s2pairs.filling import readings
from s2pairs.ledger import encoded
from s2pairs.scenes import PixelWindow, Scene
from s2pairs.simulate import simulate
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.cubes import made_plan, made_shard

BANDS = ("B04", "B03", "B02", "B08")
DATES = 3
FULL_PX, SMALL_PX = 10980, 1536
_REGIONS = 12


@dataclass(frozen=True)
class Products:
    """Level-1C products of one tile, as `safe:` reads them."""

    folder: Path

    @classmethod
    def at(cls, folder: Path, size: int) -> "Products":
        """Those in the folder, or made ones of `size` pixels a side where there is none."""
        if not list(folder.glob("*.SAFE")):
            period = {"start": date(2020, 3, 1), "end": date(2020, 9, 30)}
            tile = TileId.parse("31TCJ")
            simulate([tile], folder, size=size, dates=DATES, cloudy_dates=0, **period)
        return cls(folder)

    @cached_property
    def catalogue(self) -> SafeCatalogue:
        return SafeCatalogue(self.folder, BANDS)

    @cached_property
    def request(self) -> Request:
        """Twelve regions of 512 pixels a side, or as many as there are, at three dates."""
        name = re.findall(r"_T(\w{5})_", next(self.folder.glob("*.SAFE")).name)[0]
        return Request((TileId.parse(name),), BANDS, DATES, max_cloud=100, regions=_REGIONS)

    @property
    def windows(self) -> list[tuple[Scene, list[PixelWindow]]]:
        """What a cube needs of each scene."""
        listings = choose(self.request, self.catalogue)
        needed: dict[str, tuple[Scene, list[PixelWindow]]] = {}
        for scene, windows in readings(plan(self.request, listings), scenes_of(listings)):
            needed.setdefault(scene.product, (scene, []))[1].extend(windows)
        return list(needed.values())


def repeated_cube(path: Path, shards: int) -> Cube:
    """A cube of so many shards, each 4.6 MB, whose ground is the same 64 places again and again."""
    planned = made_plan(64 * shards, columns=160)
    create(path, planned)
    files = encoded(planned.layout, *made_shard(planned))
    ledger = open_unchanged(path).ledger
    for shard in range(shards):
        ledger.write(shard, files)
    return open_cube(path)
