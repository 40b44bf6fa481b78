"""The files of one product, in a folder or in a zip archive that is read in place.

A file is known by its location, which GDAL opens too: a path, or `/vsizip/{archive.zip}/inside`.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from s2pairs.errors import SceneError

_IN_ZIP = "/vsizip/{"
_BROKEN = (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError)
"""What the library raises for damaged archives, of the ways of packing that products have.

A damaged header may name a way of packing that it does not know: NotImplementedError.
"""


@dataclass(frozen=True)
class Archive:
    """A product: its name without `.SAFE`, where its root is, and what lies below it."""

    name: str
    root: str
    names: tuple[str, ...]
    """Files and folders, relative to the root, sorted."""

    @classmethod
    def open(cls, path: Path) -> "Archive":
        """List a `.SAFE` folder or a `.zip` of one; `SceneError` if it is neither or broken."""
        if path.suffix == ".zip":
            return _of_zip(path)
        return cls(product_name(path), str(path), tuple(sorted(_below(path))))

    def matching(self, pattern: str) -> list[str]:
        """The names that match, folder by folder: `*` does not reach over a slash."""
        parts = pattern.split("/")
        split = ((name, name.split("/")) for name in self.names)
        return [
            name
            for name, own in split
            if len(own) == len(parts) and all(map(fnmatchcase, own, parts))
        ]

    def only(self, pattern: str) -> str:
        """The one name that matches; `SceneError` if there are none or several."""
        found = self.matching(pattern)
        if len(found) != 1:
            raise SceneError(f"holds {len(found)} files {pattern}, expected one")
        return found[0]

    def location(self, name: str) -> str:
        return f"{self.root}/{name}"


def product_name(path: Path) -> str:
    return path.name.removesuffix(".zip").removesuffix(".SAFE")


def read_bytes(location: str) -> bytes:
    """The content of a file; `SceneError` if it cannot be read."""
    with opened(location) as (file, _):
        return file.read()


@contextmanager
def opened(location: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file to read forwards, and its size; whatever fails becomes a `SceneError`."""
    name = location.rpartition("/")[2]
    try:
        if not location.startswith(_IN_ZIP):
            with open(location, "rb") as file:  # noqa: PTH123, a location is no path
                yield file, os.fstat(file.fileno()).st_size
            return
        archive, _, inside = location.removeprefix(_IN_ZIP).partition("}/")
        with zipfile.ZipFile(archive) as files, files.open(inside) as member:
            yield member, files.getinfo(inside).file_size
    except OSError as error:
        raise SceneError(f"{name} cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        raise SceneError(f"{name} cannot be read: {error}") from error


def size_of(location: str) -> int:
    """Bytes that the file takes where it lies: in an archive, as it is packed there."""
    if not location.startswith(_IN_ZIP):
        return os.stat(location).st_size  # noqa: PTH116, a location is no path
    archive, _, inside = location.removeprefix(_IN_ZIP).partition("}/")
    with zipfile.ZipFile(archive) as files:
        return files.getinfo(inside).compress_size


def _below(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        yield from ((inside / name).as_posix() for name in (*folders, *files))


def _of_zip(path: Path) -> Archive:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
    except (OSError, *_BROKEN) as error:
        raise SceneError(f"{path.name} is no whole zip archive: {error}") from error
    roots = {name.partition("/")[0] for name in inside}
    root = next((each for each in sorted(roots) if each.endswith(".SAFE")), None)
    if root is None or len(roots) > 1:
        raise SceneError(f"{path.name} holds {sorted(roots)[:3]}, expected one folder .SAFE")
    names = {name.rstrip("/").partition("/")[2] for name in inside}
    # an archive need not list its folders
    names |= {above for name in list(names) for above in _folders_of(name)}
    location = f"{_IN_ZIP}{path.resolve()}}}/{root}"
    return Archive(root.removesuffix(".SAFE"), location, tuple(sorted(names - {""})))


def _folders_of(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
