"""When a folder should be read again: it changed, somebody asks, or the last attempt failed."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import final

from mimodel.index import SPEC_FILE

_SUMS = "SHA256SUMS"
_LONGEST_PAUSE = 300.0

Stamp = tuple[tuple[int, int, int] | None, ...]
"""What changes when a file is written anew, of each file that is looked at; None: it is absent."""


@final
class Watch:
    """Looks at an artifact's file of sums, and its index's, every so many seconds.

    What cannot be read is tried again, since its files may still be arriving: after `seconds`, and
    then after twice as long each time, up to five minutes; sooner if it changes. Of one event loop.
    """

    def __init__(self, folder: Path, index: Path | None, digest: str, seconds: float) -> None:
        """`digest` is that of the artifact that was loaded; the index is loaded after this.

        With `seconds` 0 only `ask` has it read again.
        """
        self._files = [folder / _SUMS, *([index / SPEC_FILE] if index else [])]
        self._seconds = seconds
        self._asked = asyncio.Event()
        stamp = self._stamp()
        # What was put there while the artifact was being loaded is still to be read.
        self._seen = stamp if _states(folder / _SUMS, digest) else None
        self._failed: Stamp | None = None
        self._pause = 0.0
        self._again = 0.0

    def ask(self) -> None:
        """Have it read again, changed or not."""
        self._asked.set()

    async def change(self) -> Stamp:
        """Wait until the folder should be read; `took` or `failed` is told of the stamp then."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._seconds or None)
            asked, stamp = self._asked.is_set(), self._stamp()
            self._asked.clear()
            if asked or self._due(stamp):
                return stamp

    def took(self, stamp: Stamp) -> None:
        """What bore this stamp was read."""
        self._seen, self._failed = stamp, None

    def failed(self, stamp: Stamp) -> None:
        """What bears this stamp cannot be read yet."""
        again = stamp == self._failed
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if again else self._seconds
        self._failed, self._again = stamp, time.monotonic() + self._pause

    def _due(self, stamp: Stamp) -> bool:
        # Without its file of sums, a folder is being swapped for another.
        if stamp == self._seen or None in stamp:
            return False
        return stamp != self._failed or time.monotonic() >= self._again

    def _stamp(self) -> Stamp:
        return tuple(_stamp_of(file) for file in self._files)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _states(sums: Path, digest: str) -> bool:
    try:
        return digest in sums.read_text()
    except (OSError, ValueError):
        return False
