"""Questions to a crossmi service."""

import datetime
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from types import TracebackType
from typing import Any, Literal, NamedTuple, final
from urllib.parse import unquote

import httpx
import numpy as np
import numpy.typing as npt
import xarray as xr

from crossmi import answers
from crossmi.errors import ArrayError, FieldProblem, ServiceError, UnreachableError
from crossmi.pixels import Array, Image, Patches

_NPY = "application/x-npy"
_TOO_LARGE, _TRY_AGAIN = 413, (429, 503)

Parameters = Mapping[str, str | int | float | Sequence[str]]
Representation = Literal["shared", "exclusive", "both"]


class Look(NamedTuple):
    """A patch of an indexed cube at one of its dates, both as indices of the cube."""

    patch: int
    date: int


@final
class Client:
    """A service at a URL. Use it in a `with` block, or close it.

    `key` is sent as `Authorization: Bearer KEY`. Every answer must come within `timeout` seconds;
    a service that is busy is asked again for as long as `patience` seconds.

    Pixels are reflectance as floats, NaN where there is no data; or integers, of which `scale`,
    `offset` and `nodata` say how they become reflectance (a DataArray may say so in its CF
    attributes). `bands` names the bands in their order; a DataArray names them by its coordinate
    `band`, or, where that holds numbers, by its attribute `long_name`, as rioxarray gives the band
    descriptions of a GeoTIFF. Without names they are the model's.

    Every method raises `ServiceError` where the service refuses, `UnreachableError` where nothing
    answers, and `ArrayError` where an array cannot be meant.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 300,
        patience: float = 60,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._patience = patience

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """What is served: for each model its bands, patch size, representations, heads."""
        found: list[dict[str, Any]] = self._ask("GET", "/models").json()["models"]
        return found

    def index(self) -> dict[str, Any]:
        """What can be searched: patches, dates, tiles, splits, the first day and the last."""
        found: dict[str, Any] = self._ask("GET", "/index").json()
        return found

    def embed(
        self,
        patches: Array,
        *,
        representation: Representation = "shared",
        bands: Sequence[str] | None = None,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
    ) -> xr.Dataset:
        """Representations of patches (..., band, row, column).

        `shared` or `exclusive`, or both, have the leading dimensions of `patches` with their
        coordinates, and one more; beside them stands what else the service says of each patch,
        such as `valid_fraction` and `out_of_distribution`. Arrays of dask are read as they are
        sent.
        """
        sent = Patches.of(patches, bands, scale, offset, nodata)
        asked = {"representation": representation}
        return answers.of_patches(sent, self._ask_for_each(sent, "/embed", asked))

    def embed_grid(
        self,
        image: Array,
        *,
        stride: int,
        representation: Representation = "shared",
        bands: Sequence[str] | None = None,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
    ) -> xr.Dataset:
        """Representations (y, x, dimension) of patches of an image, in steps of `stride` pixels.

        `y` and `x` are the pixels on which the patches are centred, with the image's coordinates
        there.
        """
        sent = Image.of(image, bands, scale, offset, nodata)
        asked: Parameters = {"representation": representation, "stride": stride}
        answer = self._post("/embed", _npy(sent.values), {**sent.parameters, **asked})
        return answers.of_grid(sent, answer.json())

    def classify(
        self,
        patches: Array,
        *,
        head: str | None = None,
        bands: Sequence[str] | None = None,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
    ) -> xr.Dataset:
        """Class `probabilities` (..., class) of patches (..., band, row, column).

        `head` names the classifier, where the model has several.
        """
        sent = Patches.of(patches, bands, scale, offset, nodata)
        asked = {"head": head} if head else {}
        return answers.of_patches(sent, self._ask_for_each(sent, "/classify", asked))

    def similarity(
        self,
        image: Array,
        *,
        row: int | None = None,
        col: int | None = None,
        pixels: Sequence[tuple[int, int]] = (),
        polygon: Sequence[tuple[float, float]] = (),
        mode: Literal["exact", "fast"] = "exact",
        stride: int | None = None,
        bands: Sequence[str] | None = None,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
    ) -> xr.DataArray:
        """How alike each pixel of an image (band, row, column) is to the one at `row`, `col`.

        Or, in the mean, to several `pixels` (row, column), or to those inside a `polygon` of such
        corners; the attribute `queries` says how many of how many counted. (y, x) with the
        coordinates of the image, NaN where it has no data; higher is more alike.
        """
        sent = Image.of(image, bands, scale, offset, nodata)
        asked: dict[str, str | int | float | Sequence[str] | None] = {
            "row": row,
            "col": col,
            "pixel": [f"{at[0]},{at[1]}" for at in pixels] or None,
            # Millionths of a pixel are as fine as the service reads.
            "polygon": [f"{at[0]:.6f},{at[1]:.6f}" for at in polygon] or None,
            "mode": mode,
            "stride": stride,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        answer = self._post("/similarity", _npy(sent.values), {**sent.parameters, **given}, _NPY)
        said = {"artifact": "X-Artifact-Id", "digest": "X-Artifact", "queries": "X-Queries"}
        heard = {name: unquote(answer.headers.get(header, "")) for name, header in said.items()}
        return answers.of_image(sent, _array(answer), {**given, **heard})

    def search(
        self,
        query: Array | Look,
        *,
        representation: Representation = "shared",
        count: int = 10,
        tiles: Sequence[str] | None = None,
        start: datetime.date | str | None = None,
        end: datetime.date | str | None = None,
        months: Sequence[int] | None = None,
        split: str | None = None,
        place: Literal["any", "same", "other"] = "any",
        per_place: int | None = None,
        min_valid: float | None = None,
        bands: Sequence[str] | None = None,
        scale: float | None = None,
        offset: float | None = None,
        nodata: float | None = None,
    ) -> xr.Dataset:
        """The looks of the service's index that are nearest to each query, nearest first.

        `query` is patches (..., band, row, column), or a `Look` of the index, which is never found
        itself. `start` and `end` are days that belong to the period; `months` are 1 to 12 of any
        year; `place` is relative to the query's own, for a `Look`; `per_place` bounds the looks of
        one place; `min_valid` is the part of valid pixels that a look needs.

        The answer has the leading dimensions and coordinates of `query`, named `query_...`, and
        one dimension more, `rank`: `patch` and `date` as indices of the cube, `distance`,
        `tile`, `acquired`, `lon`, `lat` and so on. Where fewer were found, `patch` is -1 and
        `distance` NaN.
        """
        asked: dict[str, str | int | float | None] = {
            "representation": representation,
            "count": count,
            "tile": _listed("tiles", tiles),
            "start": str(start) if start else None,
            "end": str(end) if end else None,
            "months": _listed("months", months),
            "split": split,
            "place": place,
            "per_place": per_place,
            "min_valid": min_valid,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        if isinstance(query, Look):
            answer = self._post("/search", b"", {**given, **query._asdict()}).json()
            return answers.of_search(None, [answer])
        sent = Patches.of(query, bands, scale, offset, nodata)
        return answers.of_search(sent, self._ask_for_each(sent, "/search", given))

    def thumbnail(self, look: Look) -> bytes:
        """The PNG file of a look of the index, in true colour."""
        return self._ask("GET", f"/thumbnails/{look.patch}/{look.date}.png").content

    def _ask_for_each(
        self, sent: Patches, path: str, parameters: Parameters
    ) -> list[dict[str, Any]]:
        """Answers to as many requests as the patches need, in their order."""
        together = {**sent.parameters, **parameters}
        return [
            document
            for batch in sent.batches()
            for document in self._post_halving(path, batch, together)
        ]

    def _post_halving(
        self, path: str, batch: npt.NDArray[Any], parameters: Parameters
    ) -> list[dict[str, Any]]:
        """The answer to a batch, or, where it is over a limit of the service, to its halves."""
        try:
            return [self._post(path, _npy(batch), parameters).json()]
        except ServiceError as error:
            if error.status != _TOO_LARGE or len(batch) < 2:
                raise
        half = len(batch) // 2
        parts = (batch[:half], batch[half:])
        return [one for part in parts for one in self._post_halving(path, part, parameters)]

    def _post(
        self, path: str, body: bytes, parameters: Parameters, accept: str = "application/json"
    ) -> httpx.Response:
        headers = {"Accept": accept} | ({"Content-Type": _NPY} if body else {})
        return self._ask("POST", path, body, parameters, headers)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        parameters: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = self._http.request(
                    method, path, content=body, params=parameters, headers=headers
                )
            except httpx.TransportError as error:
                raise UnreachableError(
                    f"no answer from {self._http.base_url} ({error or type(error).__name__}); "
                    "is crossmi-service running there?"
                ) from error
            pause = _pause(answer)
            if pause is None or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
        if answer.is_error:
            raise _refusal(answer)
        return answer


def _listed(name: str, wanted: Sequence[object] | None) -> str | None:
    if wanted is not None and not len(wanted):
        raise ArrayError(f"{name} is empty, so nothing could be found; leave it out to search all")
    return None if wanted is None else ",".join(map(str, wanted))


def _pause(answer: httpx.Response) -> float | None:
    """Seconds after which to ask again; None where the answer is final."""
    if answer.status_code not in _TRY_AGAIN:
        return None
    stated = answer.headers.get("Retry-After", "")
    return float(stated) if stated.isdecimal() else 1.0


def _refusal(answer: httpx.Response) -> ServiceError:
    """The problem document of an answer; what a proxy in between says has only a status."""
    try:
        document = answer.json()
        problems = [
            FieldProblem(one["location"], one["message"]) for one in document.get("errors") or []
        ]
        detail, title = str(document["detail"]), str(document["title"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServiceError(answer.status_code, answer.reason_phrase, "")
    return ServiceError(answer.status_code, title, detail, problems)


def _npy(array: npt.NDArray[Any]) -> bytes:
    file = BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _array(answer: httpx.Response) -> npt.NDArray[np.float32]:
    return np.asarray(np.load(BytesIO(answer.content), allow_pickle=False))
