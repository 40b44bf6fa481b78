"""What takes its turn leaves the event loop to others in between."""

import asyncio
from itertools import pairwise

from service.turns import Turns


def test_two_go_on_in_a_round_in_the_order_in_which_they_came() -> None:
    went: list[int] = []

    async def ask(turns: Turns, number: int) -> None:
        await turns.mine()
        went.append(number)

    async def all_of_them() -> list[int]:
        turns, seen = Turns(), []
        asking = [asyncio.create_task(ask(turns, number)) for number in range(9)]
        while len(went) < len(asking):
            await asyncio.sleep(0)  # one round of the loop, as a request for /healthz needs it
            seen.append(len(went))
        return seen

    seen = asyncio.run(all_of_them())
    assert went == list(range(9))
    steps = [after - before for before, after in pairwise(seen)]
    assert max(steps) == 2
    assert len(seen) >= 5


def test_who_goes_away_keeps_nobody_waiting() -> None:
    async def some_go() -> list[str]:
        turns = Turns()
        asking = [asyncio.create_task(turns.mine(), name=str(number)) for number in range(6)]
        await asyncio.sleep(0)
        for gone in asking[:4]:
            gone.cancel()
        await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
        await asyncio.wait_for(turns.mine(), 5)  # and it begins again
        return [one.get_name() for one in asking if not one.cancelled()]

    assert asyncio.run(some_go()) == ["4", "5"]
