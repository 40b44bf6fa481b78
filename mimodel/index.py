"""An index of a cube's representations: what `mimodel embed` writes, and exact search in it.

    index/index.json            what it is, and the SHA-256 of every other file
    index/patches.npy           one row a patch: tile, region, place on it and on the Earth, split
    index/looks.npy             one row a patch and date: acquired, product, part of valid pixels
    index/shared/00000.npy      float32 (patch, date, dimension), part after part of the patches;
                                exclusive/ alike, where the model has that representation
    index/thumbnails/00000.bin  PNG files one behind the other; 00000.npy says where each begins
    index/sample.npy            a piece of the cube's ground to try the service on

It is opened without s2pairs, zarr or rasterio. A *look* is one patch at one date; its row is
patch * dates + date. The vectors are stored as they are; faiss's flat index is built from them at
load, which takes as long as reading them: a file of faiss would hold the same numbers twice, in a
format that only faiss reads, and reading one that was tampered with is a risk.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mimodel.artifact import Artifact
from mimodel.errors import InputError, PatchIndexError
from mimodel.nearest import Nearest, Vectors, flat_index, joined

FORMAT_VERSION = 1
SPEC_FILE, PATCHES, LOOKS, SAMPLE = "index.json", "patches.npy", "looks.npy", "sample.npy"
PATCH_FIELDS = [
    ("tile", "<U5"),
    *[(name, "<i4") for name in ("region", "row", "col", "epsg")],
    *[(name, "<f8") for name in ("x", "y", "lon", "lat")],
    ("split", "<U10"),
]
LOOK_FIELDS = [("acquired", "<M8[ms]"), ("product", "<i4"), ("valid_fraction", "<f4")]
Mask = npt.NDArray[np.bool_]


class Scaling(BaseModel):
    """Mean and deviation of each dimension over the looks of the training split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class Sample(BaseModel):
    """How the sample's stored numbers become reflectance, and where on the ground they lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: tuple[str, ...]
    scale: float
    offset: float
    nodata: int
    patch: int
    """The patch of its upper left corner."""
    date: int


class FileSpec(BaseModel):
    """Size and checksum of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class IndexPlan(BaseModel):
    """What is embedded with what: all that is known before the first vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["crossmi index"] = "crossmi index"
    format_version: int = FORMAT_VERSION
    creator: str
    artifact: str
    """Id of the artifact; `encoders` says what counts."""
    encoders: dict[str, str]
    """SHA-256 of what makes each representation, as `Artifact.representation_digest` has it."""
    representations: dict[str, int]
    cube_digest: str
    level: str
    notice: str
    patches: int
    dates: int
    part_patches: int
    products: tuple[str, ...]
    thumbnail_bands: tuple[str, ...]
    thumbnail_range: tuple[tuple[float, float], ...]
    """Lowest and highest reflectance of each band in a thumbnail, alike in all of them."""

    @property
    def parts(self) -> int:
        return -(-self.patches // self.part_patches)

    def patches_of(self, part: int) -> range:
        start = part * self.part_patches
        return range(start, min(start + self.part_patches, self.patches))


_FileName = Annotated[
    str, Field(pattern=r"^(([a-z]+/[0-9]{5}\.(npy|bin))|((patches|looks|sample)\.npy))$")
]


class IndexSpec(IndexPlan):
    """A whole index: its plan, and what came of it."""

    scaling: dict[str, Scaling]
    sample: Sample | None
    files: dict[_FileName, FileSpec]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which looks a search may find. None leaves a property open."""

    tiles: Sequence[str] | None = None
    start: date | None = None
    """First day, UTC."""
    end: date | None = None
    """Last day."""
    months: Sequence[int] | None = None
    split: str | None = None
    place: int | None = None
    """The only patch."""
    not_place: int | None = None
    not_look: int | None = None
    min_valid: float = 0.9


@dataclass(frozen=True, slots=True)
class Found:
    """A look that was found."""

    patch: int
    date: int
    distance: float


@final
@dataclass(frozen=True, eq=False)
class PatchIndex:
    """A verified index in memory. `load` makes it."""

    folder: Path
    spec: IndexSpec
    patches: npt.NDArray[np.void]
    """(patch), fields as `PATCH_FIELDS`."""
    looks: npt.NDArray[np.void]
    """(patch, date), fields as `LOOK_FIELDS`."""
    sample: bytes | None
    """The .npy file (band, H, W) of stored numbers that `spec.sample` describes."""
    _flat: dict[str, Any]
    _thumbnails: "_Thumbnails"

    @classmethod
    def load(cls, folder: Path) -> "PatchIndex":
        """Read an index and verify it; every kind of damage is a `PatchIndexError`.

        The pixels of thumbnails are not read: theirs are most of the bytes, and a PNG carries its
        own checksums. Their files are kept open, so that an index that is replaced on disk stays
        whole for who has loaded it.
        """
        spec = read_spec(folder)
        tables = {name: _verified_array(folder, spec, name) for name in (PATCHES, LOOKS)}
        looks = tables[LOOKS]
        _expect(tables[PATCHES], (spec.patches,), PATCH_FIELDS, folder / PATCHES)
        _expect(looks, (spec.patches, spec.dates), LOOK_FIELDS, folder / LOOKS)
        flat = {name: _flat_index(folder, spec, name) for name in spec.representations}
        sample = _verified_bytes(folder, spec, SAMPLE) if spec.sample else None
        pictures = _Thumbnails(folder, spec)
        return cls(folder, spec, tables[PATCHES], looks, sample, flat, pictures)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the specification, which has that of every file."""
        return hashlib.sha256(self.spec.model_dump_json().encode()).hexdigest()

    @cached_property
    def tiles(self) -> list[str]:
        """Names of the tiles, in order."""
        names: list[str] = np.unique(self.patches["tile"]).tolist()
        return names

    def check_made_with(self, artifact: Artifact) -> None:
        """`PatchIndexError` unless these vectors are those that `artifact` would give."""
        encoders = encoder_digests(artifact)
        if encoders != self.spec.encoders:
            raise PatchIndexError(
                f"{self.folder} was made with the artifact {self.spec.artifact}, and this one is "
                f"{artifact.id}; make an index with it by mimodel embed, or serve the other one"
            )

    def names(self, representation: str) -> tuple[str, ...]:
        """The representations that `shared`, `exclusive` or `both` stands for."""
        names = ("shared", "exclusive") if representation == "both" else (representation,)
        missing = [name for name in names if name not in self.spec.representations]
        if missing:
            raise InputError(
                f"this index has no representation {missing[0]!r}; it has: "
                + ", ".join(self.spec.representations)
            )
        return names

    def points(self, vectors: Mapping[str, Vectors]) -> Vectors:
        """Query points (N, dimension) of representations as the model gives them, by name."""
        return joined([_scaled(self.spec, name, vectors[name]) for name in vectors])

    def point_of(self, row: int, names: tuple[str, ...]) -> Vectors:
        """The query point (1, dimension) of a look of the index."""
        return joined([self._flat[name].reconstruct(row)[None] for name in names])

    def eligible(self, wanted: Wanted) -> Mask:
        """(patch * date) which looks have what is wanted."""
        looks, patches = self.looks, self.patches
        mask: Mask = (looks["valid_fraction"] >= wanted.min_valid) & (looks["valid_fraction"] > 0)
        if wanted.tiles is not None:
            mask &= np.isin(patches["tile"], list(wanted.tiles))[:, None]
        if wanted.split is not None:
            mask &= (patches["split"] == wanted.split)[:, None]
        days = looks["acquired"].astype("datetime64[D]")
        if wanted.start is not None:
            mask &= days >= np.datetime64(wanted.start)
        if wanted.end is not None:
            mask &= days <= np.datetime64(wanted.end)
        if wanted.months is not None:
            month = looks["acquired"].astype("datetime64[M]").astype(np.int64) % 12 + 1
            mask &= np.isin(month, list(wanted.months))
        if wanted.place is not None:
            mask &= (np.arange(len(patches)) == wanted.place)[:, None]
        if wanted.not_place is not None:
            mask[wanted.not_place] = False
        flat: Mask = mask.ravel()
        if wanted.not_look is not None:
            flat[wanted.not_look] = False
        return flat

    def nearest(
        self,
        points: Vectors,
        names: tuple[str, ...],
        eligible: Mask,
        *,
        count: int,
        per_place: int | None = None,
    ) -> list[list[Found]]:
        """The nearest looks of each query point, nearest first; fewer where fewer are eligible.

        Distance is the root mean square over the dimensions of the difference, each divided by its
        deviation over the training split: 0 for the same vector, about 1.4 for two looks at random.
        By both representations it is the root of the mean of the two squares. Exact; of equal
        distances the lower row stands first. `per_place` bounds how many looks of one patch come.
        """
        search = self.search(points, names, eligible, count=count, per_place=per_place)
        for _ in search.steps():
            pass
        return search.found()

    def search(
        self,
        points: Vectors,
        names: tuple[str, ...],
        eligible: Mask,
        *,
        count: int,
        per_place: int | None = None,
    ) -> "Search":
        """What `nearest` does, in steps, for who has other work between them."""
        rows = np.flatnonzero(eligible)
        # Each patch has at most `dates` looks, so that many times as many hold enough patches.
        asked = count * (self.spec.dates if per_place else 1)
        nearest = Nearest([self._flat[name] for name in names], points, rows, asked)
        return Search(nearest, self.spec.dates, count, per_place)

    def thumbnail(self, patch: int, date: int) -> bytes:
        """The PNG file of one look; `PatchIndexError` if its disk does not give it."""
        part, inside = divmod(patch, self.spec.part_patches)
        return self._thumbnails.picture(part, inside * self.spec.dates + date)


@final
@dataclass(frozen=True, eq=False)
class Search:
    """A search in steps; `found` has its answer when all are done."""

    _nearest: Nearest
    _dates: int
    _count: int
    _per_place: int | None

    def steps(self) -> Iterator[None]:
        """Do the work, a piece a step."""
        return self._nearest.steps()

    def found(self) -> list[list[Found]]:
        """As `PatchIndex.nearest` gives it."""
        return [self._ranked(*one) for one in self._nearest.found()]

    def _ranked(self, squares: Vectors, rows: npt.NDArray[np.int64]) -> list[Found]:
        of_place: dict[int, int] = {}
        found: list[Found] = []
        for square, row in zip(squares.tolist(), rows.tolist(), strict=True):
            patch, look_date = divmod(row, self._dates)
            of_place[patch] = of_place.get(patch, 0) + 1
            if self._per_place is None or of_place[patch] <= self._per_place:
                found.append(Found(patch, look_date, max(square, 0.0) ** 0.5))
        return found[: self._count]


@final
class _Thumbnails:
    """The files of an index's pictures, open for as long as the index is used."""

    def __init__(self, folder: Path, spec: IndexSpec) -> None:
        self._folder = folder
        names = [f"thumbnails/{part:05}" for part in range(spec.parts)]
        self._offsets = [_verified_array(folder, spec, f"{name}.npy") for name in names]
        self._files: list[int] = []
        weakref.finalize(self, _close_all, self._files)
        for name, offsets in zip(names, self._offsets, strict=True):
            try:
                self._files.append(os.open(folder / f"{name}.bin", os.O_RDONLY | os.O_CLOEXEC))
                size = os.fstat(self._files[-1]).st_size
            except OSError as error:
                raise PatchIndexError(
                    f"{folder} is not whole: {name}.bin cannot be read ({error.strerror})"
                ) from error
            if size != offsets[-1]:
                raise PatchIndexError(
                    f"{folder / name}.bin has {size} bytes, expected {offsets[-1]}: it was damaged "
                    "or changed; make the index again by mimodel embed"
                )

    def picture(self, part: int, look: int) -> bytes:
        """The bytes of one look of a part."""
        start, end = (int(offset) for offset in self._offsets[part][look : look + 2])
        try:
            body = os.pread(self._files[part], end - start, start)
        except OSError as error:
            raise PatchIndexError(
                f"cannot read a thumbnail of {self._folder} ({error.strerror}); try again"
            ) from error
        if len(body) < end - start:
            raise PatchIndexError(
                f"a file of thumbnails of {self._folder} was cut; make the index again"
            )
        return body


def _close_all(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def encoder_digests(artifact: Artifact) -> dict[str, str]:
    """What an index must have in common with the artifact that queries are embedded by.

    Heads do not count, so that an index outlives another probe.
    """
    names = artifact.spec.representations
    return {name: artifact.representation_digest(name) for name in names}


def read_spec(folder: Path) -> IndexSpec:
    """The specification of an index; `PatchIndexError` if there is none that this program reads."""
    file = folder / SPEC_FILE
    try:
        fields = json.loads(file.read_text())
        version = fields.get("format_version")
    except FileNotFoundError as error:
        raise PatchIndexError(
            f"{folder} is no index: there is no {SPEC_FILE}; `mimodel embed` writes it last, and "
            "goes on where it was stopped"
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise PatchIndexError(f"cannot read {file}: {error}; make the index again") from error
    if version != FORMAT_VERSION:
        raise PatchIndexError(
            f"{folder} has format version {version!r}, this program reads {FORMAT_VERSION}; make "
            "the index again by mimodel embed"
        )
    try:
        return IndexSpec.model_validate(fields)
    except ValidationError as error:
        raise PatchIndexError(
            f"{file} is not valid ({error.error_count()} faults); make the index again"
        ) from error


def _flat_index(folder: Path, spec: IndexSpec, name: str) -> Any:
    """faiss's exact index of one representation, scaled as `PatchIndex.nearest` says."""
    dimension = spec.representations[name]
    flat = flat_index(dimension)
    for part in range(spec.parts):
        path = f"{name}/{part:05}.npy"
        vectors = _verified_array(folder, spec, path)
        shape = (len(spec.patches_of(part)), spec.dates, dimension)
        _expect(vectors, shape, "<f4", folder / path)
        flat.add(_scaled(spec, name, vectors.reshape(-1, dimension)))
    return flat


def _scaled(spec: IndexSpec, name: str, vectors: Vectors) -> Vectors:
    """Vectors whose squared distance is the mean over the dimensions of squared deviations."""
    scaling = spec.scaling[name]
    mean = np.asarray(scaling.mean, np.float32)
    size = np.asarray(scaling.deviation, np.float32) * np.float32(len(mean) ** 0.5)
    return np.ascontiguousarray((vectors - mean) / size, np.float32)


def _verified_array(folder: Path, spec: IndexSpec, name: str) -> npt.NDArray[Any]:
    try:
        array = np.load(BytesIO(_verified_bytes(folder, spec, name)), allow_pickle=False)
    except ValueError as error:
        raise PatchIndexError(f"{folder / name} is no array: {error}") from error
    return np.asarray(array)


def _verified_bytes(folder: Path, spec: IndexSpec, name: str) -> bytes:
    expected = spec.files.get(name)
    try:
        body = (folder / name).read_bytes()
    except OSError as error:
        raise PatchIndexError(
            f"{folder} is not whole: {name} cannot be read ({error.strerror}); make it again"
        ) from error
    if expected is None or expected.sha256 != hashlib.sha256(body).hexdigest():
        raise PatchIndexError(
            f"{folder / name} does not have the digest that {SPEC_FILE} states: it was damaged or "
            "changed; make the index again by mimodel embed"
        )
    return body


def _expect(
    array: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike, file: Path
) -> None:
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise PatchIndexError(
            f"{file} holds {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        )
