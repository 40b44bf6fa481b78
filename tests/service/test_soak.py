"""The soak finds what it is there to find."""

import socket
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from benchmarks import soak
from benchmarks.soak import Asked, Seen, faults
from tests.service.conftest import Running


def well(minutes: float = 10) -> Seen:
    """What comes back where all is well: caches fill in the first half, reloads come and go."""
    seen = Seen(minutes)
    for kind in soak._good_requests():
        seen.statuses[kind][200] = 40
    seen.statuses["hostile"] = Counter({400: 300, 413: 100, 422: 500})
    for service in ("patches", "pixels"):
        seen.reloads[service] = {"done": 25, "failed": 0}
        seen.memory[service] = [
            (800 + min(second, 150) + 60 * (second % 20 == 0)) << 20 for second in range(600)
        ]
    return seen


def leak(seen: Seen) -> None:
    held = seen.memory["patches"]
    # Ten MB a minute, of a GB.
    seen.memory["patches"] = [size + (second << 20) // 6 for second, size in enumerate(held)]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda seen: seen.lost.append("embed: ReadError()"), "no answer to embed: ReadError()"),
        (lambda seen: seen.statuses["classify"].update({503: 1}), "1 answers with status 503"),
        (lambda seen: seen.statuses["infer"].update({404: 2}), "2 answers with status 404"),
        (lambda seen: seen.statuses["hostile"].update({500: 1}), "1 answers with status 500"),
        (lambda seen: seen.statuses["hostile"].update({200: 1}), "1 answers with status 200"),
        (lambda seen: seen.statuses.pop("thumbnail"), "thumbnail: 0 answers, expected 10"),
        (lambda seen: seen.reloads["pixels"].update(done=0), "pixels: 0 reloads"),
        (lambda seen: seen.reloads["pixels"].update(failed=1), "and 1 failed"),
        (leak, "patches: memory grew by 4.8%"),
    ],
)
def test_each_fault_is_found(harm: Callable[[Seen], object], words: str) -> None:
    seen = well()
    assert faults(seen) == []
    harm(seen)
    (found,) = faults(seen)
    assert words in found


def test_a_short_run_says_nothing_of_memory() -> None:
    seen = well(2)
    leak(seen)
    assert faults(seen) == []


def test_a_request_without_an_answer_is_noted_and_the_next_one_is_asked(
    service: Running,
) -> None:
    metadata = Asked("patches", "/healthz", method="GET")
    seen = Seen(1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closed = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx.Client() as client:
        assert not soak._sent(client, closed, "metadata", metadata, b"", seen)
        assert soak._sent(client, service.url, "metadata", metadata, b"", seen)
    assert seen.statuses == {"metadata": {200: 1}}
    assert any(found.startswith("no answer to metadata: ConnectError") for found in faults(seen))
