"""What takes long to make from a model, kept between starts in the user's cache folder.

`$XDG_CACHE_HOME/crossmi`, else `~/.cache/crossmi`. A file begins with the SHA-256 of the rest, and
one that is damaged is made again. Where the folder cannot be written, or others could write it,
nothing is kept: what lies there is run.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size

log = logging.getLogger("crossmi.kept")


def kept(key: Sequence[str], suffix: str, make: Callable[[], bytes]) -> bytes:
    """What `make` made for this key before, or makes now. `key` says all that it depends on."""
    name = hashlib.sha256("\0".join(key).encode()).hexdigest() + suffix
    folder = _own_folder()
    if folder is None:
        return make()
    file = folder / name
    if (found := _read(file)) is not None:
        return found
    made = make()
    _write(file, made)
    return made


def _own_folder() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The standard says that a path which is not absolute does not count.
        caches = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
        folder = caches / "crossmi"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:
        log.warning("there is no cache folder, so exported models are not kept: %s", error)
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        log.warning("others may write %s, so exported models are not kept there", folder)
        return None
    return folder


def _read(file: Path) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
        return content[_DIGEST:]
    log.warning("%s is damaged and is made again", file)
    return None


def _write(file: Path, made: bytes) -> None:
    """Whole or not at all, also where two processes start at once."""
    building = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with building.open("wb") as writing:
            writing.write(hashlib.sha256(made).digest() + made)
            writing.flush()
            os.fsync(writing.fileno())
        building.replace(file)
    except OSError as error:
        log.warning("an exported model cannot be kept: %s", error)
        building.unlink(missing_ok=True)
