"""One writer a cube."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from s2pairs.errors import CubeError
from s2pairs.storage import LocalStore, Place, store_at


@contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold the cube for this process; `CubeError` that names the holder if another has it.

    The lock is the operating system's, on a file beside the cube, and dies with its holder: a
    file that a killed build left behind stops nobody. Object storage has no such lock: there two
    builds of one plan write the same bytes, and of two plans the later stops.
    """
    store = store_at(place)
    if isinstance(store, LocalStore):
        with _file_lock(store.place):
            yield
    else:
        yield


@contextmanager
def _file_lock(out: Path) -> Iterator[None]:
    if out.name in ("", ".."):
        raise CubeError(f"{out} names no folder to make; give a path such as {out / 'cube.zarr'}")
    path = out.with_name(f"{out.name}.lock")
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise CubeError(f"{out} is being built by {holder}; wait for it or stop it") from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            # the holder before has just finished and removed the file that was opened here
            raise CubeError(f"another build of {out} has just ended; try again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink()


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise CubeError(
            f"cannot write {path}: {error.strerror}; --out must lie in a folder that can be written"
        ) from error
