"""Error that the server turns into an HTTP error response."""

from __future__ import annotations

from sam_train.errors import SamTrainError


class HttpError(SamTrainError):
    """An error response.

    status: HTTP status code. 401: not authenticated. 403: not allowed. 404: not found. 409: conflict with the current state.
    410: image taken down. 422: invalid content.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
