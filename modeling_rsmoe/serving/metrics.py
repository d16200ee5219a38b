"""The metrics of a server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


SECONDS_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """Of one server; a process may have several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("rsmoe_requests", "Chat completions by HTTP status.", ["status"], registry=registry)
        self.seconds = Histogram(
            "rsmoe_request_seconds",
            "From the arrival of an answered request to the end of its answer.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("rsmoe_requests_in_flight", "Requests that wait or run.", registry=registry)
        self.waiting = Gauge("rsmoe_requests_waiting", "Requests that wait for a batch.", registry=registry)
        self.batch_size = Histogram(
            "rsmoe_batch_size", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.tokens = Counter("rsmoe_tokens", "Tokens of prompts and of texts.", ["kind"], registry=registry)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
