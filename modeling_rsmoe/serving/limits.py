"""What a request may cost, and how many there may be at a time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """All [our decision].

    Args:
        body_bytes: size of a request's body, and of an image that is fetched; more is answered 413. An image in a data
            URL takes 4/3 of its file's size.
        pixels: of an image, known from its header before anything is decoded; more is answered 413.
        requests: requests that wait or run at the same time; one more is answered 429.
        client_share: part of `requests` that one address may have, bodies that are arriving included; one more is
            answered 429. Not for this machine's own addresses, which all its users share.
        seconds: from a request's arrival to its answer; then 503, and the model stops working for it.
        stall_seconds: longest pause while a body (408) or a fetched image (400) arrives.
        new_tokens: the most that a text has; a larger `max_tokens` means so many.
        batch_size: images in one batch.
        batch_wait: longest wait of an idle model for more requests before a batch runs, in seconds.
        hosts: names of hosts that images are fetched from; `*` is any, none by default.
    """

    body_bytes: int = 16 * 2**20
    pixels: int = 4096 * 4096
    requests: int = 128
    client_share: float = 0.5
    seconds: float = 120.0
    stall_seconds: float = 10.0
    new_tokens: int = 256
    batch_size: int = 8
    batch_wait: float = 0.02
    hosts: tuple[str, ...] = ()
