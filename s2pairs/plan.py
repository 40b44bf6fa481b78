"""What a cube will hold but for its pixels: its arrays as data, and one digest over all."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs.bands import OFFSET, QUANTIFICATION, SCALE, STORED_NO_DATA, wavelengths_nm
from s2pairs.errors import CubeError
from s2pairs.masks import MEANINGS
from s2pairs.patches import PATCH_PX, PatchTable
from s2pairs.shards import ShardLayout

FORMAT = "s2pairs cube"
FORMAT_VERSION = 2
SHARD_PATCHES = 64
SHARD_BYTES = 100 * 2**20
"""Pixels of a shard at most: with many dates or bands it has fewer patches. A task holds one whole,
so this bounds what a worker needs."""
DIGEST_BYTES = 32

COORDINATES = {
    "tile": "MGRS tile",
    "region": "number of the region on its tile's grid of regions, row after row",
    "row": "pixel row of the patch's upper left pixel on the tile's 10 m grid",
    "col": "pixel column of the patch's upper left pixel on the tile's 10 m grid",
    "epsg": "EPSG code of the tile's UTM zone",
    "x": "UTM easting of the patch's centre",
    "y": "UTM northing of the patch's centre",
    "split": "train, validation or test, by ground",
    "acquired": "sensing start of the datatake, UTC",
    "product": "name of the product",
}
MEASURES: dict[str, dict[str, str]] = {
    "valid_fraction": {
        "long_name": "part of the patch's pixels that has data in every band",
        "units": "1",
    },
    "clear_fraction": {
        "long_name": "part of the pixels with data in every band that is neither cloud nor "
        "cirrus nor cloud shadow, as far as is known",
        "units": "1",
    },
    "dy": {
        "long_name": "how far south the ground lies compared with the first clear date, by phase "
        "correlation",
        "units": "pixel",
    },
    "dx": {
        "long_name": "how far east the ground lies compared with the first clear date, by phase "
        "correlation",
        "units": "pixel",
    },
    "saturated_fraction": {
        "long_name": "part of the pixels with data that is saturated in any band",
        "units": "1",
    },
    "dark_fraction": {
        "long_name": "part of the pixels with data whose brightest band is below 0.05",
        "units": "1",
    },
}
"""What is told of each patch at each date, one array each."""
FILES = ("reflectance", "mask", *MEASURES)
"""The arrays that have one file a shard, in the order of their digests in the ledger."""
ROW = ("plan", *FILES)
"""What a row of the ledger holds a digest of."""

_UNITS = {"x": "m", "y": "m", "acquired": "milliseconds since 1970-01-01"}


@dataclass(frozen=True)
class Plan:
    """All of a cube but its pixels."""

    bands: tuple[str, ...]
    level: str
    """`L1C` or `L2A`."""
    table: PatchTable
    acquired: npt.NDArray[np.datetime64]
    """(patch, date), milliseconds, UTC."""
    product: npt.NDArray[np.str_]
    """(patch, date)."""
    parameters: Mapping[str, Any]
    """What the user asked for, as JSON values: a cube is resumed only with the same."""
    attributes: Mapping[str, Any]
    """Further attributes of the group."""

    @property
    def layout(self) -> ShardLayout:
        """`CubeError` if the looks of a single place are more than a shard may hold."""
        dates, chunk = self.product.shape[1], (len(self.bands), PATCH_PX, PATCH_PX)
        one = ShardLayout(1, dates, chunk)
        fit = SHARD_BYTES // max(1, dates * one.chunk_bytes)
        if not fit:
            raise CubeError(
                f"{dates} dates of {len(self.bands)} bands are "
                f"{dates * one.chunk_bytes / 2**20:.0f} MiB a place, and a task holds "
                f"{SHARD_BYTES / 2**20:.0f}; ask for fewer dates or bands, or build several cubes"
            )
        # a power of two, so that shards hold whole rows of a region's patches
        return replace(one, patches=min(SHARD_PATCHES, 1 << (fit.bit_length() - 1)))

    @property
    def shards(self) -> int:
        return -(-len(self.table) // self.layout.patches)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything here, in hexadecimal."""
        return content_digest(group_attributes(self), plan_arrays(self))

    def holds_the_same(self, other: "Plan") -> bool:
        """Whether a cube of the other would differ at most in what it says was left out."""
        one, two = (
            replace(each, attributes={**each.attributes, "products_left_out": []})
            for each in (self, other)
        )
        return one.digest == two.digest


@dataclass(frozen=True)
class Array:
    """One array of the group as its metadata and, if it is written with the plan, its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]
    values: npt.NDArray[Any] | None


def plan_arrays(plan: Plan) -> list[Array]:
    """Every array of the cube."""
    patches, dates = plan.product.shape
    columns: dict[str, npt.NDArray[Any]] = {
        **vars(plan.table),
        "acquired": plan.acquired.astype("datetime64[ms]").astype(np.int64),
        "product": plan.product,
        "band": np.array(plan.bands),
    }
    notes = {**COORDINATES, "band": "name of the spectral band"}
    arrays = [_coordinate(name, columns[name], notes[name]) for name in columns]
    kind = {"L1C": "toa", "L2A": "surface"}[plan.level]
    return [
        *arrays,
        Array(
            "reflectance",
            "uint16",
            (patches, dates, len(plan.bands), PATCH_PX, PATCH_PX),
            ("patch", "date", "band", "y", "x"),
            {
                "standard_name": f"{kind}_bidirectional_reflectance",
                "units": "1",
                "scale_factor": SCALE,
                "add_offset": OFFSET,
                "_FillValue": STORED_NO_DATA,
                "coordinates": " ".join([*COORDINATES, *MEASURES]),
                "ancillary_variables": "mask",
            },
            None,
        ),
        Array(
            "mask",
            "uint8",
            (patches, dates, PATCH_PX, PATCH_PX),
            ("patch", "date", "y", "x"),
            {
                "long_name": "what is known of each pixel",
                "flag_masks": [1 << bit for bit in range(len(MEANINGS))],
                "flag_meanings": " ".join(MEANINGS),
                "coordinates": " ".join([*COORDINATES, *MEASURES]),
            },
            None,
        ),
        *(
            Array(name, "float32", (patches, dates), ("patch", "date"), dict(attributes), None)
            for name, attributes in MEASURES.items()
        ),
        Array(
            "shard_sha256",
            "uint8",
            (plan.shards, len(ROW), DIGEST_BYTES),
            ("shard", "entry", "byte"),
            {
                "long_name": "SHA-256 of the cube's plan and of each file of the shard; zero where "
                "the shard is not built",
                "entries": " ".join(ROW),
            },
            None,
        ),
    ]


def _coordinate(name: str, values: npt.NDArray[Any], note: str) -> Array:
    dims = {"band": ("band",), "acquired": ("patch", "date"), "product": ("patch", "date")}
    attributes = {"long_name": note}
    if name in _UNITS:
        attributes["units"] = _UNITS[name]
    kind = "string" if values.dtype.kind in "UT" else str(values.dtype)
    return Array(name, kind, values.shape, dims.get(name, ("patch",)), attributes, values)


def group_attributes(plan: Plan) -> dict[str, Any]:
    """The group's attributes, but for the digest that covers them."""
    return {
        "Conventions": "CF-1.11",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "level": plan.level,
        "bands": list(plan.bands),
        "wavelengths_nm": wavelengths_nm(plan.bands),
        "quantification": QUANTIFICATION,
        "parameters": json.dumps(dict(plan.parameters), sort_keys=True),
        **plan.attributes,
    }


def content_digest(attributes: Mapping[str, Any], arrays: Sequence[Array]) -> str:
    """SHA-256 over attributes, array metadata and the values that are written with the plan."""
    digest = hashlib.sha256()
    for array in sorted(arrays, key=lambda array: array.name):
        described = [array.name, array.dtype, array.shape, array.dims, dict(array.attributes)]
        digest.update(json.dumps(described, sort_keys=True).encode())
        if array.values is not None:
            text = array.values.dtype.kind in "UT"
            plain = "\n".join(array.values.ravel().tolist()).encode() if text else b""
            digest.update(plain or array.values.tobytes())
    digest.update(json.dumps(dict(attributes), sort_keys=True).encode())
    return digest.hexdigest()
