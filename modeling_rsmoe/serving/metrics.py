"""What a server tells Prometheus about itself."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """Of one server; several may stand in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "rsmoe_requests", "Chat completions, by the status of their answers.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "rsmoe_request_seconds",
            "From a request's arrival to the end of its answer, if it was answered.",
            buckets=SECONDS,
            registry=registry,
        )
        self.inside = Gauge("rsmoe_requests_inside", "Requests that wait or run.", registry=registry)
        self.waiting = Gauge("rsmoe_requests_waiting", "Requests that wait for a batch.", registry=registry)
        self.batch_size = Histogram(
            "rsmoe_batch_size", "Images in one generate.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.tokens = Counter("rsmoe_tokens", "Tokens of prompts and of texts.", ["kind"], registry=registry)

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self.registry)
