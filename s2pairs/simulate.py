"""Simulates Sentinel-2: Level-1C products of a made landscape, with the truth beside them.

`out/` holds the products; `out/truth/` holds `landcover/<tile>.tif`, `parcels/<tile>.tif`,
`clouds/<product>.tif` (its tags say by how many pixels the product is out of register) and
`simulation.json`, the parameters. The same parameters make the same
bytes, whatever the number of workers. A product is there whole or not at all, so the same command
resumes.

What makes it hard: seasons, haze, sun, clouds and noise change the pixels from date to date far
more than places differ. What makes it fair: structure stays, and so do class and parcel.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs.bands import band, parse_bands
from s2pairs.camera import CLOUD, NO_DATA, render
from s2pairs.errors import S2PairsError
from s2pairs.landscape import CLASSES, Ground, Window, ground
from s2pairs.overpasses import Calendar, Overpass, overpasses
from s2pairs.safe_writer import L1CMasks, L1CProduct, usual_offsets, write_l1c
from s2pairs.tiles import PIXEL_SIZE_M, TILE_SIZE_PX, TileId

FORMAT = 3  # of the made pixels: raise it when the same parameters make other bytes

_LAST_YEAR = 9990  # reprocessing is made up to come years later, and the calendar ends with 9999


@dataclass(frozen=True, slots=True)
class Simulation:
    """What stands in `out` after a run: products, truth files, and how many products it made."""

    out: Path
    products: tuple[Path, ...]
    truth: tuple[Path, ...]
    written: int
    size_bytes: int


def simulate(
    tiles: Sequence[TileId],
    out: Path,
    *,
    size: int = TILE_SIZE_PX,
    dates: int = 12,
    start: date,
    end: date,
    bands: Sequence[str] = ("B02", "B03", "B04", "B08"),
    seed: int = 0,
    cloudy_dates: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Simulation:
    """Write products of `tiles` into `out`, at `dates` clear and `cloudy_dates` cloudy overpasses.

    `size` is the side of a scene in 10 m pixels, from the tile's upper left corner. `cloudy_dates`
    is a third of `dates` unless given; these products have more than 5% cloud, the others at most
    1.5%. From six dates on, one clear date in six is half outside the swath. `start` and `end`
    both belong to the period. `progress` is told products done and in all. `S2PairsError` if the
    parameters make no sense or `out` cannot be written.
    """
    cloudy = math.ceil(dates / 3) if cloudy_dates is None else cloudy_dates
    calendar = Calendar(dates=dates, cloudy=cloudy, start=start, end=end, seed=seed)
    names = parse_bands(",".join(bands))
    _check(tiles, size, names, calendar)
    plans = {tile: overpasses(tile, calendar) for tile in tiles}
    with _writable(out):
        _remember(out, tiles, size, names, calendar)
        return _make(plans, out, size, names, seed, workers, progress)


def _make(
    plans: Mapping[TileId, Sequence[Overpass]],
    out: Path,
    size: int,
    names: tuple[str, ...],
    seed: int,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> Simulation:
    done, total = 0, sum(len(each) for each in plans.values())
    products: list[Path] = []
    truth: list[Path] = []
    written = 0
    for tile, passes in plans.items():
        scene = _Scene(tile, size, names, seed, out)
        truth += scene.truth_files()
        missing = [each for each in passes if not scene.folder(each).exists()]
        truth += [scene.cloud_file(each) for each in passes]
        done += len(passes) - len(missing)
        progress(done, total)
        for _ in scene.make(missing, workers or min(os.cpu_count() or 1, 4)):
            written, done = written + 1, done + 1
            progress(done, total)
        products += [scene.folder(each) for each in passes]
    size_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Simulation(out, tuple(products), tuple(truth), written, size_bytes)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """What the operating system refuses, such as to fill a full disk, becomes an `S2PairsError`."""
    try:
        yield
    except OSError as error:
        raise S2PairsError(
            f"cannot write {error.filename or out}: {error.strerror}; make room or choose another "
            "folder and run the same command again, which keeps the products that are whole"
        ) from error


def _check(tiles: Sequence[TileId], size: int, bands: tuple[str, ...], calendar: Calendar) -> None:
    step = max(band(name).resolution_m for name in bands) // PIXEL_SIZE_M
    if not 1 <= size <= TILE_SIZE_PX or size % step:
        raise S2PairsError(
            f"a scene of {size} pixels: the side must be at most {TILE_SIZE_PX} "
            f"and, for {','.join(bands)}, a multiple of {step}"
        )
    if not tiles or len(set(tiles)) < len(tiles):
        raise S2PairsError(f"expected different tiles, got {[tile.name for tile in tiles]}")
    if calendar.end.year > _LAST_YEAR:
        raise S2PairsError(f"the period ends on {calendar.end}; give a year up to {_LAST_YEAR}")
    if calendar.dates < 1 or calendar.cloudy < 0:
        raise S2PairsError(
            f"{calendar.dates} clear and {calendar.cloudy} cloudy dates; "
            "expected at least 1 and at least 0"
        )


def _remember(
    out: Path, tiles: Sequence[TileId], size: int, bands: tuple[str, ...], calendar: Calendar
) -> None:
    """Keep the parameters in the folder; other ones than those it was begun with are an error."""
    parameters = {
        "format": FORMAT,
        "tiles": [tile.name for tile in tiles],
        "size": size,
        "dates": calendar.dates,
        "cloudy_dates": calendar.cloudy,
        "start": calendar.start.isoformat(),
        "end": calendar.end.isoformat(),
        "bands": list(bands),
        "seed": calendar.seed,
    }
    path = out / "truth" / "simulation.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        partial.rename(path)
        return
    begun = _begun(path)
    keys = sorted(parameters | begun)
    other = [key for key in keys if parameters.get(key) != begun.get(key)]
    if other:
        listed = ", ".join(f"{key} {begun.get(key)} not {parameters.get(key)}" for key in other)
        raise S2PairsError(
            f"{out} holds a simulation with other parameters ({listed}); "
            "use the same ones to resume it, or another folder"
        )


def _begun(path: Path) -> dict[str, Any]:
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise S2PairsError(
            f"{path} is broken, so the folder cannot be resumed; remove it or use another --out"
        )
    return begun


class _Scene:
    """One tile of a simulation: its ground, made once, and its products."""

    def __init__(self, tile: TileId, size: int, bands: tuple[str, ...], seed: int, out: Path):
        self.tile = tile
        self.size = size
        self.bands = bands
        self.seed = seed
        self.out = out
        self.window = Window.of_tile(tile, size, size)

    def truth_files(self) -> tuple[Path, Path]:
        truth = self.out / "truth"
        return truth / "landcover" / f"{self.tile}.tif", truth / "parcels" / f"{self.tile}.tif"

    def cloud_file(self, overpass: Overpass) -> Path:
        name = self.product(overpass, 0).name.removesuffix(".SAFE")
        return self.out / "truth" / "clouds" / f"{name}.tif"

    def folder(self, overpass: Overpass) -> Path:
        return self.out / self.product(overpass, 0).name

    def product(self, overpass: Overpass, cloud_cover: float) -> L1CProduct:
        return L1CProduct(
            tile=self.tile,
            spacecraft=overpass.spacecraft,
            acquired=overpass.acquired,
            generated=overpass.generated,
            baseline=overpass.baseline,
            relative_orbit=overpass.relative_orbit,
            absolute_orbit=overpass.absolute_orbit,
            cloud_cover=cloud_cover,
            sun_zenith=overpass.sun.zenith,
            sun_azimuth=overpass.sun.azimuth,
            add_offset=usual_offsets(overpass.baseline),
            height=self.size,
            width=self.size,
        )

    def make(self, missing: list[Overpass], workers: int) -> Iterator[Path]:
        """Write the truth maps and the missing products; yields each product when it is whole."""
        landcover, parcels = self.truth_files()
        if not missing and landcover.exists() and parcels.exists():
            return
        with ThreadPoolExecutor(workers) as pool:
            # One pixel more on each side, for the blur of the optics.
            land = ground(self.window.grown(1), self.tile.epsg, self.seed, pool.map)
            inner = (slice(1, -1), slice(1, -1))
            self._write_map(landcover, land.landcover[inner], classes=json.dumps(CLASSES))
            self._write_map(parcels, land.parcel[inner])
            yield from pool.map(lambda overpass: self._write_product(overpass, land), missing)

    def _write_product(self, overpass: Overpass, land: Ground) -> Path:
        numbers, sky = render(overpass, self.window, land, self.bands, self.seed)
        east, south = overpass.shift
        self._write_map(
            self.cloud_file(overpass), sky, NO_DATA, shift_east_px=east, shift_south_px=south
        )
        valid = int(np.count_nonzero(sky != NO_DATA))
        cover = 100 * int(np.count_nonzero(sky == CLOUD)) / max(valid, 1)
        return write_l1c(self.out, self.product(overpass, cover), numbers, _masks(sky))

    def _write_map(
        self,
        path: Path,
        values: npt.NDArray[Any],
        nodata: int | None = None,
        **tags: str | float,
    ) -> None:
        """A GeoTIFF on the tile's grid; `classes`, names by value as JSON, also gives colours."""
        from affine import Affine
        from rasterio.io import MemoryFile

        left, top = self.tile.upper_left()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        # GDAL closes a GeoTIFF on a full disk without a word, so it writes into memory.
        with MemoryFile() as file:
            with file.open(
                driver="GTiff",
                height=values.shape[0],
                width=values.shape[1],
                count=1,
                dtype=values.dtype,
                crs=f"EPSG:{self.tile.epsg}",
                transform=Affine(PIXEL_SIZE_M, 0, left, 0, -PIXEL_SIZE_M, top),
                nodata=nodata,
                compress="deflate",
                tiled=True,
            ) as image:
                image.write(values, 1)
                image.update_tags(1, **tags)
                if "classes" in tags:
                    image.write_colormap(1, dict(enumerate(_COLOURS)))
            partial.write_bytes(file.getbuffer())
        partial.rename(path)


def _masks(sky: npt.NDArray[np.uint8]) -> L1CMasks:
    """What a provider would say: in cells of 60 m, of which at least half are so.

    Level-1C knows no shadows. All made clouds are opaque; made ground is never under snow.
    """
    opaque = _share_of_cells(sky == CLOUD) >= 0.5
    nothing = np.zeros_like(opaque)
    return L1CMasks(opaque, nothing, nothing, seen=_share_of_cells(sky != NO_DATA) >= 0.5)


def _share_of_cells(pixels: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    step = 6
    rest = [(0, -side % step) for side in pixels.shape]
    whole = np.pad(pixels, rest, mode="edge")
    height, width = (side // step for side in whole.shape)
    share: npt.NDArray[np.float64] = whole.reshape(height, step, width, step).mean(axis=(1, 3))
    return share


_COLOURS = (
    (43, 87, 151, 255),
    (30, 92, 46, 255),
    (140, 190, 90, 255),
    (232, 212, 104, 255),
    (226, 148, 56, 255),
    (190, 62, 62, 255),
    (164, 156, 146, 255),
    (52, 52, 56, 255),
)
