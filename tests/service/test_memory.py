"""What is freed can be used by all threads, and goes back to the system; counted in a process."""

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_info"), reason="there is no glibc, whose heaps these are"
)

_EIGHT_THREADS = """
import ctypes, threading
from service import memory

libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
{first}
together = threading.Barrier(8)

def take():
    together.wait()
    libc.malloc(1000)
    together.wait()  # a heap whose thread has ended would serve the next one

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""

_HOLES = """
import ctypes, re
from service import memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(10_000) for _ in range(10_000)]
for block in blocks:
    ctypes.memset(block, 1, 10_000)
libc.malloc(10_000)  # above them, so that they are no free end of the heap
for block in blocks:
    libc.free(block)
{then}
print(int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10)
"""


def said(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True
    )
    return done.stdout


def test_threads_share_two_heaps() -> None:
    apart, shared = (
        said(_EIGHT_THREADS.format(first=first)).count("<heap ")
        for first in ("", "memory.share_heaps()")
    )
    assert shared <= 2 < apart


def test_what_is_free_between_what_is_used_is_given_back() -> None:
    kept, given_back = (int(said(_HOLES.format(then=then))) for then in ("", "memory.give_back()"))
    assert kept - given_back > 90_000_000  # of the 100 MB of the blocks
