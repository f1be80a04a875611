"""Figures of the service for Prometheus, at /metrics; labels have few values, and none comes from a client's text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServiceMetrics:
    """The counters of one dispatcher."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "presto_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "presto_request_seconds", "Time to the answer.", ("route",), buckets=SECONDS, registry=registry
        )
        self.accepted = Gauge("presto_clips_accepted", "Clips at work or waiting.", registry=registry)
        self.clips = Counter("presto_clips", "Clips made.", registry=registry)
        self.audio_seconds = Counter("presto_audio_seconds", "Seconds of sound made.", registry=registry)
        self.batch = Histogram(
            "presto_batch_size", "Clips made in one pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.waited = Histogram("presto_batch_wait_seconds", "Waiting for a batch.", buckets=SECONDS, registry=registry)
        self.refused = Counter("presto_refused", "Requests refused for lack of room (429).", registry=registry)
        self.left = Counter("presto_clients_left", "Clients that left before their answer.", registry=registry)
        self.retried = Counter("presto_retries", "Clips made again because a replica died.", registry=registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)
