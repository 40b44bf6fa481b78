"""Requests share batches, and nobody can tell from an answer."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pytest

from service.batching import Batcher
from service.errors import TooManyError
from service.rates import Rates

Array = npt.NDArray[np.float32]


def doubled(items: Array) -> Array:
    return items * 2


class Gate:
    """Work that waits to be let through, and remembers the items of each call."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.calls: list[list[float]] = []

    def __call__(self, items: Array) -> Array:
        assert self.opened.wait(20)
        self.calls.append(items[:, 0].tolist())
        return items * 2


def numbered(start: int, count: int) -> Array:
    return np.arange(start, start + count, dtype=np.float32)[:, None]


async def _asked(batcher: Batcher, gate: Gate, requests: list[Array]) -> list[Array]:
    """Answers to requests that all wait before the first is worked on."""
    first = asyncio.create_task(batcher.rows(gate, numbered(-1, 1)))
    await asyncio.sleep(0.05)  # the thread has taken it and waits at the gate
    tasks = [asyncio.create_task(batcher.rows(gate, items)) for items in requests]
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    return await asyncio.gather(*tasks)


def in_a_loop(work: Callable[[Batcher], object], max_batch: int = 8) -> list[int | str]:
    """Run `work(batcher)`; the sizes of the batches, and where other work was."""
    sizes: list[int | str] = []
    batcher = Batcher(max_batch, sizes.append, lambda: sizes.append("call"))
    try:
        asyncio.run(asyncio.wait_for(work(batcher), 30))  # type: ignore[arg-type]
    finally:
        batcher.close()
    return sizes


def test_what_waits_goes_in_one_batch_and_each_gets_its_own_rows() -> None:
    gate = Gate()
    requests = [numbered(10 * i, 2) for i in range(5)]

    async def ask(batcher: Batcher) -> None:
        for items, rows in zip(requests, await _asked(batcher, gate, requests), strict=True):
            np.testing.assert_array_equal(rows, items * 2)

    assert in_a_loop(ask) == [1, 8, 2]
    assert gate.calls[1] == [0, 1, 10, 11, 20, 21, 30, 31]


def test_many_patches_let_others_in_between() -> None:
    gate = Gate()
    requests = [numbered(0, 30), numbered(100, 1), numbered(200, 1)]

    async def ask(batcher: Batcher) -> None:
        for items, rows in zip(requests, await _asked(batcher, gate, requests), strict=True):
            np.testing.assert_array_equal(rows, items * 2)

    assert in_a_loop(ask) == [1, 8, 8, 8, 8]
    assert gate.calls[1] == list(range(8))
    assert gate.calls[2][:2] == [100, 200]  # before the rest of the large one


def test_other_work_is_not_joined_and_keeps_its_turn() -> None:
    async def ask(batcher: Batcher) -> None:
        gate = Gate()
        tripled = [numbered(5, 2), lambda items: items * 3]
        first = asyncio.create_task(batcher.rows(gate, numbered(0, 1)))
        await asyncio.sleep(0.05)
        several = asyncio.gather(
            batcher.rows(doubled, numbered(1, 2)),
            batcher.rows(tripled[1], tripled[0]),  # type: ignore[arg-type]
            batcher.call(lambda: "alone"),
            batcher.rows(doubled, numbered(3, 1)),
        )
        await asyncio.sleep(0)
        gate.opened.set()
        await first
        a, b, c, d = await several
        np.testing.assert_array_equal(a, numbered(1, 2) * 2)
        np.testing.assert_array_equal(b, numbered(5, 2) * 3)
        assert c == "alone"
        np.testing.assert_array_equal(d, numbered(3, 1) * 2)

    assert in_a_loop(ask) == [1, 3, 2, "call"]


def test_a_failure_reaches_who_asked_and_nobody_else() -> None:
    def broken(items: Array) -> Array:
        raise ValueError("no such luck")

    async def ask(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="luck"):
            await batcher.rows(broken, numbered(0, 3))
        np.testing.assert_array_equal(await batcher.rows(doubled, numbered(0, 3)), [[0], [2], [4]])

    in_a_loop(ask)


def test_what_has_failed_in_part_is_not_worked_on_any_further() -> None:
    calls: list[int] = []

    def broken(items: Array) -> Array:
        calls.append(len(items))
        raise ValueError("no such luck")

    async def ask(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="luck"):
            await batcher.rows(broken, numbered(0, 30))
        await batcher.rows(doubled, numbered(0, 1))  # after whatever is left of it

    assert in_a_loop(ask) == [8, 1]
    assert calls == [8]


def test_what_nobody_waits_for_is_left_out() -> None:
    gate = Gate()

    async def ask(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.rows(gate, numbered(0, 1)))
        await asyncio.sleep(0.05)
        given_up = asyncio.create_task(batcher.rows(gate, numbered(50, 30)))
        kept = asyncio.create_task(batcher.rows(gate, numbered(7, 1)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await first
        np.testing.assert_array_equal(await kept, [[14]])
        with pytest.raises(asyncio.CancelledError):
            await given_up

    in_a_loop(ask)
    assert gate.calls == [[0], [7]]


def test_what_was_asked_before_the_end_is_answered() -> None:
    async def ask(batcher: Batcher) -> None:
        gate = Gate()
        tasks = [asyncio.create_task(batcher.rows(gate, numbered(i, 1))) for i in range(20)]
        await asyncio.sleep(0)
        threading.Timer(0.1, gate.opened.set).start()
        await asyncio.to_thread(batcher.close)
        assert [float(rows[0, 0]) for rows in await asyncio.gather(*tasks)] == [
            2.0 * i for i in range(20)
        ]
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.rows(doubled, numbered(0, 1))

    in_a_loop(ask)


def test_a_rate_is_kept_by_each_client_over_any_time() -> None:
    """Whatever the pattern, no more than the burst and what the rate allows is let through."""
    rng = np.random.default_rng(0)
    rates = Rates(5.0)
    now, allowed = 100.0, {"a": 0, "b": 0}
    for _ in range(2000):
        now += float(rng.exponential(0.02))
        client = "a" if rng.random() < 0.9 else "b"
        with suppress(TooManyError):
            rates.count(client, now)
            allowed[client] += 1
    passed = now - 100
    assert allowed["a"] == pytest.approx(5 * passed + 10, abs=2)  # asks far more often
    assert allowed["b"] == pytest.approx(5 * passed, rel=0.2)  # asks about as often as it may


def test_who_waits_as_told_is_let_in() -> None:
    rates = Rates(0.5)
    rates.count("a", 0.0)
    with pytest.raises(TooManyError) as refused:
        rates.count("a", 0.5)
    rates.count("a", 0.5 + refused.value.seconds)
    Rates(0).count("a")


def test_the_clients_that_are_remembered_are_limited() -> None:
    rates = Rates(1.0)
    for number in range(30_000):
        rates.count(str(number), 0.0)
    assert len(rates._buckets) == 10_000
