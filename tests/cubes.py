"""A small cube on disk whose ground is made here, without products."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.cube import Cube, create, open_cube
from s2pairs.ledger import Ledger, encoded
from s2pairs.masks import NO_DATA, Flags
from s2pairs.patches import PatchTable
from s2pairs.plan import Plan
from s2pairs.shards import Pixels
from s2pairs.storage import store_at
from s2pairs.tiles import TileId

BANDS = ("B04", "B03", "B02", "B08")
TILES = ("31TCJ", "56HLH")
"""Toulouse, and Sydney for the south."""
DAYS = ("2019-02-10", "2019-07-05", "2020-07-14")


def made_cube(
    path: Path, patches: int, *, columns: int = 8, seed: int = 0, level: str = "L1C"
) -> Cube:
    """Smooth ground of its own at each place, brighter or darker by date; both tiles alternate.

    Patches stand in rows of `columns` on their tile. Patch 1 has no data at date 0, patch 2 on its
    upper half at date 1.
    """
    plan = made_plan(patches, columns, level)
    create(path, plan)
    for shard in range(plan.shards):
        write_shard(path, plan, shard, *made_shard(plan, shard, seed))
    return open_cube(path)


def write_shard(path: Path, plan: Plan, shard: int, pixels: Pixels, masks: Flags) -> None:
    """Stored values (patch, date, band, 64, 64) and masks (patch, date, 64, 64) of a shard."""
    Ledger(store_at(path), plan.digest).write(shard, encoded(plan.layout, pixels, masks))


def made_shard(plan: Plan, shard: int = 0, seed: int = 0) -> tuple[Pixels, Flags]:
    """Stored values (patch, date, band, 64, 64) and masks (patch, date, 64, 64) of a shard."""
    size = plan.layout.patches
    some = np.arange(shard * size, min((shard + 1) * size, len(plan.table)))
    pixels = _pixels(some, seed)
    return pixels, np.where((pixels == 0).any(axis=2), NO_DATA, 0).astype(np.uint8)


def made_plan(patches: int, columns: int, level: str = "L1C") -> Plan:
    number = np.arange(patches)
    south = number >= patches // 2
    place = np.where(south, number - patches // 2, number)
    row, col = place // columns * 64, place % columns * 64
    tiles = [TileId.parse(name) for name in TILES]
    left, top = (np.array(each)[south.astype(int)] for each in zip(*_corners(tiles), strict=True))
    days = np.array(DAYS, "datetime64[ms]") + np.timedelta64(10 * 3600 * 1000 + 123, "ms")
    return Plan(
        bands=BANDS,
        level=level,
        table=PatchTable(
            tile=np.array(TILES)[south.astype(int)],
            region=(place // 4).astype(np.int32),
            row=row.astype(np.int32),
            col=col.astype(np.int32),
            epsg=np.array([tile.epsg for tile in tiles], np.int32)[south.astype(int)],
            x=left + 10.0 * (col + 32),
            y=top - 10.0 * (row + 32),
            split=np.array(["train", "train", "validation", "test"])[number % 4],
        ),
        acquired=np.tile(days, (patches, 1)),
        product=np.array([[f"S2A_{day}" for day in DAYS]] * patches),
        parameters={},
        attributes={"products": [], "products_left_out": [], "notice": "simulated"},
    )


def _corners(tiles: list[TileId]) -> list[tuple[int, int]]:
    return [tile.upper_left() for tile in tiles]


def _pixels(patches: npt.NDArray[np.int64], seed: int) -> Pixels:
    """Stored values (patch, date, band, 64, 64)."""
    rows, columns = np.mgrid[:64, :64] / 64
    pixels = np.empty((len(patches), len(DAYS), len(BANDS), 64, 64), np.uint16)
    for out, patch in zip(pixels, patches, strict=True):
        rng = np.random.default_rng([seed, int(patch)])
        level, slope, waves = (
            rng.uniform(0.05, 0.4, 4),
            rng.uniform(-0.1, 0.1, 2),
            rng.uniform(2, 12),
        )
        shape = slope[0] * rows + slope[1] * columns + 0.05 * np.sin(waves * rows)
        for date, light in enumerate((0.8, 1.0, 1.05)):
            ground = light * (level[:, None, None] + shape) + rng.normal(0, 0.004, (4, 64, 64))
            out[date] = np.clip(np.rint(ground * 1e4 + 1000), 1, 65534)
    pixels[patches == 1, 0] = 0
    pixels[patches == 2, 1, :, :32] = 0
    return pixels
