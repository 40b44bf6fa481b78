"""What Prometheus may ask: requests by route and status, batches, waiting, the model."""

from collections.abc import Callable, Mapping
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

MEDIA_TYPE = CONTENT_TYPE_LATEST


@final
class Metrics:
    """The figures of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "crossmi_requests", "Answers", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "crossmi_request_seconds",
            "Time from the headers of a request to the end of its answer",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self.batches = Histogram(
            "crossmi_batch_patches",
            "Patches that the model took at a time",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.calls = Counter(
            "crossmi_model_calls",
            "Other work of the model: steps of maps, warm-ups",
            registry=registry,
        )
        self.reloads = Counter(
            "crossmi_reloads", "Attempts to read the artifact again", ["outcome"], registry=registry
        )
        for outcome in ("done", "failed"):
            self.reloads.labels(outcome)
        self._model = Gauge(
            "crossmi_model_info", "The model that answers", ["id", "digest"], registry=registry
        )
        self._waiting = Gauge(
            "crossmi_places_taken", "Requests that are worked on or wait", registry=registry
        )
        self._bytes = Gauge(
            "crossmi_waiting_bytes", "Bytes held in memory", ["of"], registry=registry
        )

    def watch(self, places: Callable[[], float], held: Mapping[str, Callable[[], float]]) -> None:
        """Where to look for what changes all the time: places, and the bytes that are `held`."""
        self._waiting.set_function(places)
        for of, count in held.items():
            self._bytes.labels(of).set_function(count)

    def model(self, identity: str, digest: str) -> None:
        """Another model answers from now on."""
        self._model.clear()
        self._model.labels(identity, digest).set(1)

    def exposition(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry)
