"""A request that cannot be had, as the server and what stands behind it say it."""

from __future__ import annotations

from sam_train.errors import SamTrainError


class HttpError(SamTrainError):
    """`status` is HTTP's: 401 who are you, 403 not yours, 404 not there, 409 not as things stand, 410 taken down, 422 makes no
    sense."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
