"""Where the files of a cube lie: a local folder, or any place that fsspec knows by its URL.

A file is named by its key, its path inside the cube with `/` between names. What `write` has
returned for stays after a kill or a power cut, and no reader ever sees half of it: on a disk by
temporary file, fsync and rename; in object storage because a put is whole or not at all.
"""

import errno
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, final

from s2pairs.errors import CubeError

Place = Path | str
"""A local path, or a URL such as `s3://bucket/cube.zarr`."""

_MAKE_ROOM = "what is built stays, so make room and run the same s2pairs build command again"


class Store(ABC):
    """The files of one cube. Reading what is not there is a `FileNotFoundError`."""

    place: Place
    """Where it is, as Zarr takes it."""
    lanes: int
    """How many files are best read at a time: a disk answers at once, a network after a while."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """All bytes of several small files; None for what is not there."""

    @abstractmethod
    def read_end(self, key: str, size: int) -> bytes:
        """The last `size` bytes of a file, fewer if it is shorter."""

    @abstractmethod
    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at each (offset, size) of a file."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put a file there, in the place of one of that name; `CubeError` if that cannot be."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The size of every file, by key."""

    @abstractmethod
    def adopt(self, key: str, other: "Store", other_key: str) -> None:
        """Have the bytes that another store has under `other_key`, as cheaply as the two allow."""

    @abstractmethod
    def create(self, folder: Path, first: str) -> None:
        """Take over a local folder as a new cube, whole or not at all; the folder is used up.

        The file `first` says what it is. `CubeError` if another with another one was quicker.
        """

    @abstractmethod
    def sweep(self) -> None:
        """Remove what a killed writer left half done. Nobody else may be writing."""

    @abstractmethod
    def exists(self, key: str = "zarr.json") -> bool:
        """Whether a file is there; asked without a key, whether any cube is."""

    def path(self, key: str) -> str:
        """A file's full name, for messages."""
        return f"{self.place}/{key}"


def store_at(place: Place | Store) -> Store:
    """The store of a cube at a local path or a URL, or as it is; reads nothing."""
    if isinstance(place, Store):
        return place
    text = str(place)
    if isinstance(place, str) and text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    if isinstance(place, str) and ("://" in text or "::" in text):
        return ObjectStore(text.rstrip("/"))
    return LocalStore(Path(place))


@final
class LocalStore(Store):
    """A folder of a local or shared POSIX file system."""

    lanes = 1

    def __init__(self, place: Path) -> None:
        self.place: Path = place

    def __reduce__(self) -> tuple[type["LocalStore"], tuple[Path]]:
        # another process may stand in another folder
        return LocalStore, (self.place.absolute(),)

    def read(self, key: str) -> bytes:
        return (self.place / key).read_bytes()

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for key in keys:
            try:
                found.append(self.read(key))
            except FileNotFoundError:
                found.append(None)
        return found

    def read_end(self, key: str, size: int) -> bytes:
        with (self.place / key).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read()

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        with (self.place / key).open("rb") as file:
            for offset, size in parts:
                yield os.pread(file.fileno(), size, offset)

    def write(self, key: str, data: bytes) -> None:
        path = self.place / key
        # named for this writer: a task that was taken for dead may still be at the same file
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # it may have been lost with its files
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _fsync(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CubeError(f"cannot write {path}: {error.strerror}; {_MAKE_ROOM}") from error

    def sizes(self) -> dict[str, int]:
        found = {}
        for root, _, names in os.walk(self.place):
            inside = Path(root).relative_to(self.place).as_posix()
            below = "" if inside == "." else f"{inside}/"
            for name in names:
                found[below + name] = os.stat(f"{root}/{name}").st_size  # noqa: PTH116, thousands
        return found

    def adopt(self, key: str, other: Store, other_key: str) -> None:
        if isinstance(other, LocalStore) and self._link(key, other.place / other_key):
            return
        self.write(key, other.read(other_key))

    def _link(self, key: str, file: Path) -> bool:
        """Whether a file could be linked: files of cubes are replaced, never written into."""
        path = self.place / key
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
        try:
            temporary.hardlink_to(file)
            temporary.replace(path)
            # a link renamed over another link to the same file leaves both (POSIX rename)
            temporary.unlink(missing_ok=True)
            _fsync(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                return False
            raise
        return True

    def create(self, folder: Path, first: str) -> None:
        for root, _, files in os.walk(folder):
            for name in files:
                _fsync(Path(root, name))
            _fsync(Path(root))
        folder.rename(self.place)
        _fsync(self.place.parent)

    def sweep(self) -> None:
        for path in self.place.rglob(".*.new"):
            path.unlink(missing_ok=True)

    def exists(self, key: str = "zarr.json") -> bool:
        # anything at the place of a cube is in the way of a new one
        return self.place.exists() if key == "zarr.json" else (self.place / key).is_file()


@final
class ObjectStore(Store):
    """A prefix of an object storage, or whatever else fsspec opens by URL."""

    lanes = 32

    def __init__(self, place: str) -> None:
        self.place: str = place

    def read(self, key: str) -> bytes:
        with self._answers(key):
            return bytes(self._files.cat_file(self._at(key)))

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._answers(""):
            found = self._files.cat([self._at(key) for key in keys], on_error="return")
        answers = [found[self._at(key)] for key in keys]
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                with self._answers(key):
                    raise answer
        return [None if isinstance(answer, Exception) else bytes(answer) for answer in answers]

    def read_end(self, key: str, size: int) -> bytes:
        with self._answers(key):
            return bytes(self._files.cat_file(self._at(key), start=-size))

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        with self._answers(key):
            found = self._files.cat_ranges(
                [self._at(key)] * len(parts),
                [offset for offset, _ in parts],
                [offset + size for offset, size in parts],
                on_error="raise",
            )
        yield from (bytes(each) for each in found)

    def write(self, key: str, data: bytes) -> None:
        try:
            with self._answers(key):
                self._files.pipe_file(self._at(key), data)
        except FileNotFoundError as error:
            raise CubeError(
                f"cannot write {self.path(key)}: there is no such bucket; make it first"
            ) from error

    def sizes(self) -> dict[str, int]:
        with self._answers(""):
            found = self._files.find(self._root, detail=True)
        return {name[len(self._root) + 1 :]: int(each["size"]) for name, each in found.items()}

    def adopt(self, key: str, other: Store, other_key: str) -> None:
        if isinstance(other, ObjectStore) and type(other._files) is type(self._files):
            with self._answers(key):
                self._files.cp_file(other._at(other_key), self._at(key))
        else:
            self.write(key, other.read(other_key))

    def create(self, folder: Path, first: str) -> None:
        self._claim(first, (folder / first).read_bytes())
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        # last the one by which a cube is known, so that there is a whole cube or none
        for path in sorted(files, key=lambda path: path == folder / "zarr.json"):
            self.write(path.relative_to(folder).as_posix(), path.read_bytes())
        shutil.rmtree(folder)

    def _claim(self, key: str, data: bytes) -> None:
        """Put a file there if none is; `CubeError` if one is there with other bytes."""
        try:
            self._files.pipe_file(self._at(key), data, mode="create")
        except Exception:  # noqa: BLE001, each driver has its own for what is there already
            if not self.exists(key):
                # perhaps a store that cannot put on a condition; write says what else it is
                self.write(key, data)
            elif self.read(key) != data:
                raise CubeError(
                    f"another build, of other products or parameters, has begun at {self.place}; "
                    "use another --out, or if it runs no more, remove what is there and try again"
                ) from None

    def sweep(self) -> None:
        """Nothing: a put that was cut off left no object."""

    def exists(self, key: str = "zarr.json") -> bool:
        with self._answers(key):
            # what a listing remembers may be older than what another process wrote
            self._files.invalidate_cache()
            return bool(self._files.isfile(self._at(key)))

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            files, root = fsspec.core.url_to_fs(self.place)
        except (ValueError, ImportError, OSError) as error:
            raise CubeError(
                f"cannot open {self.place}: {error}; expected a local path or a URL that fsspec "
                "knows, such as s3://bucket/cube.zarr (pip install 'crossmi[s3]')"
            ) from error
        return files, str(root)

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def __reduce__(self) -> tuple[type["ObjectStore"], tuple[str]]:
        # another process connects anew
        return ObjectStore, (self.place,)

    @contextmanager
    def _answers(self, key: str) -> Iterator[None]:
        """Whatever the driver raises as a `CubeError`, but for a file that is not there."""
        try:
            yield
        except (CubeError, FileNotFoundError):
            raise
        except Exception as error:
            raise CubeError(
                f"cannot reach {self.path(key)}: {error}; what is built stays. Check the URL, the "
                "credentials and AWS_ENDPOINT_URL, and run the same command again"
            ) from error


def _fsync(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
