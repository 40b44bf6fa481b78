"""Documents and arrays of the service as xarray, with the coordinates of what was asked about."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from crossmi.pixels import Image, Patches, coordinates

_NOT_PER_PATCH = ("artifact", "head", "classes", "grid")

_ALWAYS: Mapping[str, Any] = {"patch": 0, "date": 0, "distance": 0.0}
"""What an answer has even where nothing was found, with a value of its type."""

Document = Mapping[str, Any]


def of_patches(sent: Patches, documents: Sequence[Document]) -> xr.Dataset:
    """One variable for each thing that is said of every patch, over the dimensions of `sent`."""
    return _of_each(documents, sent.leading, sent.shape, coordinates(sent.array, sent.leading))


def of_grid(sent: Image, document: Document) -> xr.Dataset:
    """As `of_patches`, over the grid (y, x) of an image's patches."""
    rows, cols = document["grid"]["rows"], document["grid"]["cols"]
    centres = sent.array.isel(y=rows, x=cols)
    along = {"y": xr.Variable("y", rows), "x": xr.Variable("x", cols)}
    return _of_each(
        [document], ("y", "x"), (len(rows), len(cols)), along | coordinates(centres, ("y", "x"))
    )


def _of_each(
    documents: Sequence[Document],
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    along: Mapping[str, xr.Variable],
) -> xr.Dataset:
    first = documents[0]
    variables = {}
    for name, said in first.items():
        if name not in _NOT_PER_PATCH and said is not None:
            values = np.concatenate([np.array(each[name], np.float32) for each in documents])
            inner = ["class" if name == "probabilities" else f"{name}_dimension"][: values.ndim - 1]
            variables[name] = ((*dims, *inner), values.reshape((*shape, *values.shape[1:])))
    # what the service says of a patch goes before what a cube said of it under the same name
    beside = {name: values for name, values in along.items() if name not in variables}
    made = xr.Dataset(variables, beside, _attributes(first))
    return made.assign_coords({"class": list(first["classes"])}) if "classes" in first else made


def of_image(
    sent: Image, values: npt.NDArray[np.float32], attributes: Mapping[str, Any]
) -> xr.DataArray:
    """(y, x) with the image's coordinates."""
    along = coordinates(sent.array, ("y", "x"))
    return xr.DataArray(values, along, ("y", "x"), "similarity", attributes)


def of_search(sent: Patches | None, documents: Sequence[Document]) -> xr.Dataset:
    """What was found for each query, padded along `rank` to the longest answer."""
    found = [query["nearest"] for document in documents for query in document["queries"]]
    leading = tuple(f"query_{name}" for name in sent.leading) if sent else ()
    shape = sent.shape if sent else ()
    longest = max(map(len, found))
    names = next((list(looks[0]) for looks in found if looks), list(_ALWAYS))
    variables = {
        name: ((*leading, "rank"), _padded(found, name, longest).reshape((*shape, longest)))
        for name in names
    }
    made = xr.Dataset(variables, attrs=_attributes(documents[0]))
    return made.assign_coords(_of_queries(sent)) if sent else made


def _of_queries(sent: Patches) -> dict[str, xr.Variable]:
    """The coordinates of the queries under names that those of the answer leave free."""
    along = coordinates(sent.array, sent.leading)
    return {
        f"query_{name}": xr.Variable([f"query_{dim}" for dim in values.dims], values.values)
        for name, values in along.items()
    }


def _padded(
    found: Sequence[Sequence[Document]], name: str, longest: int
) -> npt.NDArray[np.generic]:
    example = next((looks[0][name] for looks in found if looks), _ALWAYS.get(name))
    nothing: Any = {int: -1, float: np.nan, str: ""}[type(example)]
    if name == "acquired":
        nothing = np.datetime64("NaT")
    rows = [
        [_value(name, look[name]) for look in looks] + [nothing] * (longest - len(looks))
        for looks in found
    ]
    return np.array(rows, "datetime64[ms]" if name == "acquired" else None)


def _value(name: str, value: Any) -> Any:
    return np.datetime64(value.removesuffix("Z"), "ms") if name == "acquired" else value


def _attributes(document: Document) -> dict[str, Any]:
    known = {"artifact": document["artifact"]["id"], "digest": document["artifact"]["digest"]}
    said = ("head", "representation")
    return known | {name: document[name] for name in said if name in document}
