"""Memory that was freed, and what the search for more of it costs.

Of what the C library keeps, other libraries than glibc go without.
"""

import ctypes
import gc
from contextlib import suppress

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
_HEAPS = 2


def share_heaps() -> None:
    """Have all threads take their memory from two heaps; to be called before there are threads.

    By itself each has one of its own, and what is free in one serves no other.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)


def set_aside() -> None:
    """Leave all objects there are now, mostly those of libraries, to their reference counts alone.

    The collector would look through a million of them every two seconds under load, for a tenth of
    a second in which nobody is answered.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Give what is free to the system, such as a model that another has replaced."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
