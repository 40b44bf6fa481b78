"""The files that a catalogue of items names: local paths, https and s3, opened by rasterio.

GDAL itself would follow redirects to any host, so files over HTTP are read through `RangeFile`.
Object stores are read by GDAL: their end point comes from us or from the environment, never from
an item.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from s2pairs.errors import SceneError, SourceError
from s2pairs.sources.jp2 import check_complete
from s2pairs.sources.web import RangeFile, Web

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_END_OF_CODESTREAM = b"\xff\xd9"

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
            raise SceneError(f"{href[:200]} names a file on this machine, from a remote catalogue")
        if kind == "file" and not Path(place).is_file():
            raise SceneError(f"{place} is missing")
        if kind == "s3" and place.partition("/")[0] not in self._buckets:
            known = ", ".join(sorted(self._buckets)) or "none"
            bucket = place.partition("/")[0]
            raise SceneError(
                f"{href[:200]} is not read: only the buckets {known} are; if you trust it, add "
                f"--allow-host s3://{bucket}"
            )
        if kind == "web":
            try:
                self._web.reach.check_url(href)
            except SourceError as error:
                raise SceneError(str(error)) from error

    @contextmanager
    def open(self, href: str) -> Iterator["DatasetReader"]:
        """The image; `SceneError` if it is broken or missing, `SourceError` if nobody answers."""
        import rasterio

        self.check_allowed(href)
        kind, place = _kind(href)
        file = RangeFile(self._web, href) if kind == "web" else None
        options: dict[str, str] = {}
        if kind == "s3":
            bucket = place.partition("/")[0]
            options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", **self._buckets[bucket]}
        try:
            with ExitStack() as stack:
                stack.enter_context(rasterio.Env(**options))
                if file is not None:
                    yield stack.enter_context(_through(file, href))
                else:
                    path = f"/vsis3/{place}" if kind == "s3" else place
                    yield stack.enter_context(rasterio.open(path, driver=_driver(place)))
        except rasterio.errors.RasterioError as error:
            if file is not None and file.failure is not None:
                raise file.failure from error
            raise SceneError(f"{href[:200]} cannot be read: {error}") from error

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
                raise SceneError(f"{href[:200]} is cut short ({file.size} bytes)")
        else:
            from rasterio.windows import Window

            with self.open(href) as image:
                image.read(1, window=Window(image.width - 1, image.height - 1, 1, 1))

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

    with rasterio.open(path, driver=_driver(path), opener=opener) as image:
        yield image


def _driver(path: str) -> str:
    """By name, and no other: a VRT and its like name further files."""
    return "JP2OpenJPEG" if path.lower().endswith((".jp2", ".j2k")) else "GTiff"
