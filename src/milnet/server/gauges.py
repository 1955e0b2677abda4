"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 3, 4, 8, 16, 32, 64)


class Gauges:
    """What is counted; none of it says anything about a photo."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("milnet_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "milnet_request_seconds", "From the first byte to the last.", ["route"], buckets=_SECONDS, registry=own
        )
        self.photos = Counter("milnet_photos", "Photos by what became of them.", ["model", "result"], registry=own)
        self.photo_seconds = Histogram(
            "milnet_photo_seconds", "From the last byte of a photo to its score.", buckets=_SECONDS, registry=own
        )
        self.refused = Counter("milnet_refused", "Requests refused because too many photos wait.", registry=own)
        self.batches = Histogram("milnet_batch_photos", "Photos of a forward pass.", buckets=_SIZES, registry=own)
        self.passes = Histogram("milnet_pass_seconds", "Forward pass and scores.", buckets=_SECONDS, registry=own)
        self.decoders_died = Counter("milnet_decoders_died", "Decoding processes replaced.", registry=own)

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A figure that is read when it is asked for."""
        Gauge(name, what, registry=self.registry).set_function(read)

    def passed(self, count: int, seconds: float) -> None:
        """A forward pass has ended."""
        self.batches.observe(count)
        self.passes.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
