"""Errors as OpenAI's API words them, so that its clients raise the right exception and know when to try again."""

from typing import Any


_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
CLIENT_GONE = 499  # nginx's number, for the metrics: no client is left to read it


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        code: a word for programs.
        param: the field of the request.
        retry_after: seconds until another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}

    @property
    def content(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
