"""The files that a catalogue of items names: local paths, https and s3, opened by rasterio.

GDAL itself would follow redirects to any host, so files over HTTP are read through `RangeFile`.
Object stores are read by GDAL: their end point comes from us or from the environment, never from
an item.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from s2pairs.errors import SceneError, SourceError
from s2pairs.sources.jp2 import check_complete, driver_of
from s2pairs.sources.reach import shown
from s2pairs.sources.web import Patience, RangeFile, Web

if TYPE_CHECKING:
    from rasterio.errors import RasterioError
    from rasterio.io import DatasetReader

_END_OF_CODESTREAM = b"\xff\xd9"

T = TypeVar("T")
Buckets = Mapping[str, Mapping[str, str]]
"""By bucket, the options of GDAL that its store needs."""


class Assets:
    """Files by the `href` of an item; which of them may be read is decided here."""

    def __init__(self, web: Web, buckets: Buckets, *, beside_local_catalogue: bool) -> None:
        self._web = web
        self._buckets = buckets
        self._local = beside_local_catalogue

    def check_allowed(self, href: str) -> None:
        """`SceneError` unless the file may be read: a file on this machine only from a catalogue
        on this machine, a bucket or a host only if it is among the known ones."""
        kind, place = _kind(href)
        if kind == "file" and not self._local:
            raise SceneError(f"{shown(href)} names a file on this machine, from a remote catalogue")
        if kind == "file" and not Path(place).is_file():
            raise SceneError(f"{place} is missing")
        if kind == "s3" and place.partition("/")[0] not in self._buckets:
            known = ", ".join(sorted(self._buckets)) or "none"
            bucket = place.partition("/")[0]
            raise SceneError(
                f"{shown(href)} is not read: only the buckets {known} are; if you trust it, add "
                f"--allow-host s3://{bucket}"
            )
        if kind == "web":
            try:
                self._web.reach.check_url(href)
            except SourceError as error:
                raise SceneError(str(error)) from error

    def look(self, href: str, look: Callable[["DatasetReader"], T]) -> T:
        """What `look` finds in the image.

        `SceneError` if the file is broken or missing, `SourceError` if nobody answers.
        """
        import rasterio

        self.check_allowed(href)
        kind, place = _kind(href)
        if kind == "s3":
            return self._look_in_store(href, place, look)
        file = RangeFile(self._web, href) if kind == "web" else None
        try:
            with (
                rasterio.Env(),
                _through(file, href)
                if file is not None
                else rasterio.open(place, driver=driver_of(place)) as image,
            ):
                return look(image)
        except rasterio.errors.RasterioError as error:
            if file is not None and file.failure is not None:
                raise file.failure from error
            raise SceneError(f"{shown(href)} cannot be read: {shown(str(error))}") from error

    def _look_in_store(self, href: str, place: str, look: Callable[["DatasetReader"], T]) -> T:
        """Twice where reading fails: GDAL calls a store that fell silent a file cut short."""
        import rasterio

        path = f"/vsis3/{place}"
        options = {**_patient(self._web.patience), **self._buckets[place.partition("/")[0]]}
        for _ in range(2):
            # what is kept of a file would open it again though the store is silent
            with rasterio.Env(**options, CPL_VSIL_CURL_NON_CACHED=path):
                try:
                    image = rasterio.open(path, driver=driver_of(place))
                except rasterio.errors.RasterioError as error:
                    raise _unopened(href, error) from error
                try:
                    with image:
                        return look(image)
                except rasterio.errors.RasterioError as error:
                    failure = error
        raise SceneError(f"{shown(href)} cannot be read: {shown(str(failure))}") from failure

    def check_whole(self, href: str) -> None:
        """`SceneError` if the file ends before it should; reads next to nothing.

        A JPEG 2000 codestream ends with a marker; in a GeoTIFF for the cloud the last pixel stands
        last.
        """
        kind, place = _kind(href)
        self.check_allowed(href)
        if place.endswith(".jp2") and kind == "file":
            check_complete(place)
        elif place.endswith(".jp2") and kind == "web":
            file = RangeFile(self._web, href)
            file.seek(-len(_END_OF_CODESTREAM), os.SEEK_END)
            if file.read() != _END_OF_CODESTREAM:
                raise SceneError(f"{shown(href)} is cut short ({file.size} bytes)")
        else:
            self.look(href, _last_pixel)

    def size(self, href: str) -> int:
        """Of a file on this machine, in bytes."""
        return Path(_kind(href)[1]).stat().st_size

    def content(self, href: str) -> bytes | None:
        """A small file such as metadata; None where it lies in an object store, which needs keys
        that only GDAL has here."""
        self.check_allowed(href)
        kind, place = _kind(href)
        if kind == "s3":
            return None
        if kind == "web":
            return self._web.content(href)
        try:
            return Path(place).read_bytes()
        except OSError as error:
            raise SceneError(f"{place} cannot be read: {error.strerror}") from error


def _kind(href: str) -> tuple[str, str]:
    """`file`, `s3` or `web`, and the path, the bucket with its key, or the URL's path."""
    parts = urlsplit(href)
    scheme = parts.scheme.lower()
    if scheme == "s3":
        return "s3", f"{parts.netloc}{parts.path}"
    if scheme == "file":
        return "file", unquote(parts.path)
    if scheme:
        return "web", parts.path
    return "file", href


def _last_pixel(image: "DatasetReader") -> None:
    from rasterio.windows import Window

    image.read(1, window=Window(image.width - 1, image.height - 1, 1, 1))


def _patient(patience: Patience) -> dict[str, str]:
    """The same tries and waits as those of `Web`, as GDAL's options."""
    seconds = str(math.ceil(patience.timeout_s))
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MAX_RETRY": str(patience.tries - 1),
        "GDAL_HTTP_RETRY_DELAY": str(patience.first_wait_s),
        "GDAL_HTTP_CONNECTTIMEOUT": seconds,
        "GDAL_HTTP_LOW_SPEED_TIME": seconds,
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1",  # byte a second
    }


def _unopened(href: str, error: "RasterioError") -> SceneError | SourceError:
    """Only what the store says of this one file is the scene's fault."""
    cause = type(error.__cause__ or error.__context__).__name__
    why = f"{shown(href)} cannot be opened: {shown(str(error))}"
    of_file = cause in ("CPLE_AWSObjectNotFoundError", "CPLE_OpenFailedError", "NoneType")
    if of_file or re.search(r"HTTP response code: (404|410)\b", str(error)):
        return SceneError(why)
    return SourceError(f"{why}; the same command goes on later")


@contextmanager
def _through(file: RangeFile, href: str) -> Iterator["DatasetReader"]:
    """The image in a file of ours; GDAL sees no other, and no address."""
    import rasterio

    # rasterio knows openers by path, so each opening needs a path of its own
    path = f"{uuid4().hex}/{Path(urlsplit(href).path).name}"

    def opener(asked: str, mode: str = "rb") -> RangeFile:  # noqa: ARG001
        if asked != path:
            raise FileNotFoundError(asked)
        return file

    with rasterio.open(path, driver=driver_of(path), opener=opener) as image:
        yield image
