"""The images that maps were asked of last, and how much of them stays in memory."""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from mimodel.similarity import PreparedImage
from service.errors import BusyError
from service.settings import Settings


@final
class Images:
    """Images and their features, within one number of bytes for all that are in memory.

    Those that are being worked on count, whether they are kept here or not. What is asked about
    least recently gives way, and so does what nobody has asked about for `map_cache_seconds`. May
    be used by several threads.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = settings.map_cache_bytes
        self._seconds = settings.map_cache_seconds
        self._max_maps = settings.max_maps
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[PreparedImage, float]] = OrderedDict()
        self._alive: weakref.WeakSet[PreparedImage] = weakref.WeakSet()
        self._maps = 0

    @property
    def nbytes(self) -> int:
        """Memory of all images that are kept or worked on, with their features."""
        with self._lock:
            return self._held()

    @contextmanager
    def work(self) -> Iterator[None]:
        """A map that is worked on; `BusyError` where there are as many as there may be."""
        if self._maps >= self._max_maps:
            raise BusyError(f"{self._maps} similarity maps are being worked on; try again later")
        self._maps += 1
        try:
            yield
        finally:
            self._maps -= 1

    def get(self, key: bytes) -> PreparedImage | None:
        """The image that is kept under a key."""
        with self._lock:
            self._touch(key)
            return self._kept[key][0] if key in self._kept else None

    def put(self, key: bytes, image: PreparedImage) -> None:
        """Keep an image, if there is room for its pixels."""
        with self._lock:
            self._alive.add(image)
            self._kept.pop(key, None)
            self._kept[key] = image, self._clock()
            self._shrink(0)

    def room(self, key: bytes, count: int) -> bool:
        """Whether an image that is kept may keep so many bytes more of its features."""
        with self._lock:
            self._touch(key)
            return self._shrink(count) and key in self._kept

    def expire(self) -> None:
        """Forget what nobody has asked about for long."""
        with self._lock:
            last = self._clock() - self._seconds
            while self._kept and next(iter(self._kept.values()))[1] <= last:
                self._kept.popitem(last=False)

    def close(self) -> None:
        """Forget all, and keep nothing from now on: the model is no longer asked."""
        with self._lock:
            self._max_bytes = 0
            self._kept.clear()

    def _touch(self, key: bytes) -> None:
        if key in self._kept:
            self._kept[key] = self._kept[key][0], self._clock()
            self._kept.move_to_end(key)

    def _shrink(self, count: int) -> bool:
        """Forget until so many bytes more are within the limit; whether they are."""
        while self._held() + count > self._max_bytes:
            if not self._kept or count > self._max_bytes:
                return False
            self._kept.popitem(last=False)
        return True

    def _held(self) -> int:
        return sum(image.nbytes for image in self._alive)
