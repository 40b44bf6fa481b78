"""How often a client may ask: a bucket of tokens for each."""

import time
from collections import OrderedDict
from typing import final

from service.errors import TooManyError

_MAX_CLIENTS = 10_000


@final
class Rates:
    """Counts requests of clients; a rate of 0 allows any."""

    def __init__(self, rate: float) -> None:
        """`rate` is in requests a second; twice as many may come at once, and at least one."""
        self._rate = rate
        self._burst = max(1.0, 2 * rate)
        # Tokens and the time of the last look, the client that was seen longest ago first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def count(self, client: str, now: float | None = None) -> None:
        """One request of `client`, at `now` seconds of any steady clock; `TooManyError` if it is
        one too many."""
        if not self._rate:
            return
        now = time.monotonic() if now is None else now
        tokens, before = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * self._rate)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _MAX_CLIENTS:
            # Who has not been seen for so long has a full bucket again, or nearly so.
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise TooManyError(
                f"a client may ask {self._rate:g} times a second; wait", (1 - tokens) / self._rate
            )
