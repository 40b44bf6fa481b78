"""Sentinel-2 cubes as pairs of dates and as labelled patches.

Of mimodel, this module knows s2pairs, with landcover.py and scenes.py beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mimodel.data.holding import InMemory, Looks, OnDevice, OnDisk, Places
from mimodel.data.landcover import open_class_maps
from mimodel.data.pairs import ORIENTATIONS, LabelledPatches, PairBatch, turned
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation
from s2pairs.bands import OFFSET, SCALE, STORED_NO_DATA, reflectance_from_stored
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import S2PairsError
from s2pairs.patches import PATCH_PX

Stored = npt.NDArray[np.uint16]
_NORMALISATION_PATCHES = 1024
_READ_PATCHES = 256


@contextmanager
def reading_a_cube() -> Iterator[None]:
    """Errors of s2pairs, such as a damaged shard, as this package's."""
    try:
        yield
    except S2PairsError as error:
        raise DataError(str(error)) from error


def read_cube(path: Path | str) -> Cube:
    """`s2pairs.cube.open_cube`, with its errors as this package's."""
    with reading_a_cube():
        return open_cube(path)


def usable_dates(cube: Cube, min_valid: float, min_clear: float = 0.0) -> npt.NDArray[np.bool_]:
    """(patch, date): enough pixels with data, and enough that are neither cloud nor shadow."""
    valid = np.asarray(cube.valid_fraction) >= min_valid
    return valid & (np.asarray(cube.clear_fraction) >= min_clear) if min_clear else valid


class CubePairs:
    """Pairs (same place, two different dates) of one split of a cube.

    Places are drawn without repetition inside a batch, because the same place twice would be a
    negative that is none; the two dates of a place are drawn uniformly from its usable ones. A
    `patch` below 64 is cut out of the place's pixels, anywhere, at both dates alike or, at the
    second, up to `displaced` pixels away. With `turn`, a pair is seen in one of eight orientations,
    both dates in the same.

    A split of up to `memory_gb` is held in memory, a larger one is read batch by batch; with
    `device` it is held there, whatever its size. All three give the same pairs.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        bands: Sequence[str] | None,
        min_valid: float,
        memory_gb: float,
        seed: int,
        min_clear: float = 0.0,
        device: str | None = None,
        patch: int = 64,
        displaced: int = 0,
        turn: bool = False,
        split: str = "train",
        normalisation: Normalisation | None = None,
    ) -> None:
        self.cube = read_cube(path)
        self.bands = tuple(bands or (normalisation.bands if normalisation else self.cube.bands))
        if normalisation and self.bands != normalisation.bands:
            raise DataError(
                f"the bands {', '.join(self.bands)} are asked for, and the shared encoder reads "
                f"{', '.join(normalisation.bands)}; leave data.bands out"
            )
        self._band_index = band_indices(self.cube, self.bands)
        self._seed = seed
        self._patch = patch
        self._displaced = displaced
        self._turn = turn
        usable = usable_dates(self.cube, min_valid, min_clear)
        in_split = np.asarray(self.cube.split) == split
        self.places = np.flatnonzero(in_split & (usable.sum(1) >= 2))
        if len(self.places) < 2:
            raise DataError(
                f"{path} has {len(self.places)} places of the {split} split with two dates of at "
                f"least {min_valid:.0%} valid and {min_clear:.0%} clear pixels; build more tiles "
                "or regions, or lower data.min_valid or data.min_clear"
            )
        self._dates = [np.flatnonzero(usable[place]) for place in self.places]
        whole = self._read_whole() if device or self._gigabytes <= memory_gb else None
        self.normalisation = normalisation or self._fit(whole)
        self._looks = self._held(whole, device)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._patch, self._patch

    @property
    def description(self) -> dict[str, str]:
        return {
            "data": f"Sentinel-2 cube, {len(self.places)} training places, "
            f"{self.cube.dates} dates, pairs of dates"
            + f", {self._patch} x {self._patch} pixels of each" * (self._patch < 64)
            + f", the second up to {self._displaced} pixels away" * bool(self._displaced)
            + ", turned" * self._turn,
            "data_digest": self.cube.digest,
            "tiles": " ".join(sorted(set(np.asarray(self.cube.tile).tolist()))),
            "level": str(self.cube.attributes.get("level", "")),
        }

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch:
        """`rows` of `size` pairs, a function of the seed and of `step`."""
        if size > len(self.places):
            raise DataError(
                f"a batch of {size} pairs needs as many places, and {self.cube.path} has "
                f"{len(self.places)} for training; lower training.batch_size"
            )
        rng = np.random.default_rng([self._seed, 1, step])
        chosen = rng.choice(len(self.places), size, replace=False)
        dates = np.stack([rng.choice(self._dates[place], 2, replace=False) for place in chosen])
        turns = rng.integers(ORIENTATIONS, size=size) if self._turn else np.zeros(size, np.int64)
        last = PATCH_PX - self._patch
        corners = rng.integers(last + 1, size=(size, 2))
        near = corners
        if self._displaced:
            lowest = (corners - self._displaced).clip(0)
            near = rng.integers(lowest, (corners + self._displaced).clip(max=last), endpoint=True)
        chosen, dates, turns = chosen[rows], dates[rows], turns[rows]
        # both dates at once: one visit to each shard, one transfer of indices
        both = self._looks.take(np.tile(chosen, 2), dates.T.ravel())
        if self._patch < PATCH_PX:
            cut = np.concatenate([corners[rows], near[rows]])
            both = _cut(both, torch.from_numpy(cut), self._patch)
        if self._turn:
            both = turned(both, torch.from_numpy(np.tile(turns, 2)).to(both.device))
        return PairBatch(*both.chunk(2))

    @property
    def _gigabytes(self) -> float:
        return len(self.places) * self.cube.dates * len(self.bands) * 64 * 64 * 2 / 1e9

    def _read_whole(self) -> Stored:
        """The whole split as stored values (place, date, band, row, col)."""
        shape = (len(self.places), self.cube.dates, len(self.bands), 64, 64)
        stored = np.empty(shape, dtype=np.uint16)
        for start in range(0, len(self.places), _READ_PATCHES):
            part = slice(start, start + _READ_PATCHES)
            stored[part] = self._read_places(self.places[part])
        return stored

    def _read_places(self, places: npt.NDArray[np.intp]) -> Stored:
        with reading_a_cube():
            return self.cube.read(places)[:, :, self._band_index]

    def _read_looks(self, place: Places, date: Places) -> Stored:
        with reading_a_cube():
            return self.cube.read_looks(self.places[place], date)[:, self._band_index]

    def _fit(self, whole: Stored | None) -> Normalisation:
        """Fitted on all dates of up to 1,024 places of this split."""
        rng = np.random.default_rng([self._seed, 0])
        count = min(_NORMALISATION_PATCHES, len(self.places))
        chosen = np.sort(rng.choice(len(self.places), count, replace=False))
        stored = self._read_places(self.places[chosen]) if whole is None else whole[chosen]
        patches = stored.reshape(-1, *stored.shape[2:])
        return Normalisation.fit(self.bands, reflectance_from_stored(patches))

    def _held(self, whole: Stored | None, device: str | None) -> Looks:
        def standardise(stored: Stored) -> npt.NDArray[np.float32]:
            return self.normalisation(reflectance_from_stored(stored))

        if whole is None:
            return OnDisk(self._read_looks, standardise)
        if device is None:
            return InMemory(whole, standardise)
        mean, std = (np.array(each) for each in (self.normalisation.mean, self.normalisation.std))
        return OnDevice(
            whole,
            device,
            factor=(SCALE / std).astype(np.float32),
            offset=((OFFSET - mean) / std).astype(np.float32),
            no_data=STORED_NO_DATA,
        )


def _cut(images: torch.Tensor, corners: torch.Tensor, size: int) -> torch.Tensor:
    """Of each image (batch, band, 64, 64), the square whose upper left pixel `corners` names."""
    windows = images.unfold(2, size, 1).unfold(3, size, 1)
    rows, cols = corners.to(images.device).T
    return windows[torch.arange(len(images), device=images.device), :, rows, cols]


def labelled_cube(
    path: Path, labels: Path, *, bands: Sequence[str], min_valid: float, dates: int, seed: int
) -> LabelledPatches:
    """Up to `dates` usable dates of each place, with the majority class of its ground.

    Places of the validation split stand at the end, as far as their class is one of the others'.

    `labels` is a folder of categorical rasters, one a tile, named `<tile>.tif`, on the tile's grid;
    the band tag `classes` is a JSON list of class names by value.
    """
    cube = read_cube(path)
    index = band_indices(cube, bands)
    rng = np.random.default_rng([seed, 2])
    usable = usable_dates(cube, min_valid)
    ground, classes = _majority_classes(cube, labels)
    validation = np.asarray(cube.split) == "validation"
    ground[validation & ~np.isin(ground, ground[~validation])] = -1
    samples = [
        (place, date)
        for place in np.argsort(validation, kind="stable").tolist()
        if ground[place] >= 0
        for date in np.sort(rng.permutation(np.flatnonzero(usable[place]))[:dates])
    ]
    if not samples:
        raise DataError(f"no place of {path} has a label in {labels} and a usable date")
    place, date = np.array(samples).T
    with reading_a_cube():
        stored = np.concatenate(
            [
                cube.read_pairs(place[part], date[part], date[part])[0][:, index]
                for part in np.array_split(np.arange(len(place)), -(-len(place) // 1024))
            ]
        )
    present = np.unique(ground[place])
    return LabelledPatches(
        reflectance=reflectance_from_stored(stored),
        label=np.searchsorted(present, ground[place]),
        place=place,
        date=date,
        split=np.asarray(cube.split)[place],
        classes=tuple(classes[value] for value in present),
    )


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A square of neighbouring patches of one tile at one date."""

    stored: Stored
    """(band, H, W), the bands of the cube."""
    places: tuple[int, ...]
    """The patches, row after row."""
    date: int


def mosaic(cube: Cube, side: int = 4) -> Mosaic | None:
    """The largest gapless square, up to `side` x `side` patches, of ground without no-data.

    At the date at which most patches are whole; None where none is.
    """
    index = {
        (str(tile), int(row), int(col)): place
        for place, (tile, row, col) in enumerate(zip(cube.tile, cube.row, cube.col, strict=True))
    }
    whole_at = np.asarray(cube.valid_fraction) == 1
    date = int(whole_at.sum(0).argmax())
    whole = whole_at[:, date]
    for extent in range(side, 0, -1):
        steps = [(64 * down, 64 * right) for down in range(extent) for right in range(extent)]
        for tile, row, col in index:
            places = [index.get((tile, row + down, col + right), -1) for down, right in steps]
            if min(places) >= 0 and whole[places].all():
                grid = cube.read_pairs(places, [date] * len(places), [date] * len(places))[0]
                lines = grid.reshape(extent, extent, *grid.shape[1:])
                stored = np.concatenate(
                    [np.concatenate(list(line), axis=2) for line in lines], axis=1
                )
                return Mosaic(stored, tuple(places), date)
    return None


def band_indices(cube: Cube, bands: Sequence[str]) -> list[int]:
    """Positions of bands in the cube; a band that it lacks is an error that says what it has."""
    if len(set(bands)) < len(bands):
        raise DataError(f"a band is named twice in {', '.join(bands)}")
    missing = [band for band in bands if band not in cube.bands]
    if missing:
        raise DataError(
            f"{cube.path} has no band {', '.join(missing)}; it has {', '.join(cube.bands)}"
        )
    return [cube.bands.index(band) for band in bands]


def _majority_classes(cube: Cube, labels: Path) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The most frequent class of each patch (-1: it has none), and all class names."""
    maps = open_class_maps(cube, labels)
    ground = np.full(cube.patches, -1, np.int64)
    for place, values in maps.read(np.arange(cube.patches)):
        counts = np.bincount(values[values >= 0], minlength=len(maps.classes))
        if counts.sum():
            ground[place] = int(counts.argmax())
    return ground, maps.classes
