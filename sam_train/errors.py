"""Everything this project raises on purpose.

    SamTrainError
    ├── ConfigError        names something that is not there, or values that cannot go together
    ├── ShardError         a shard or record is not what the schema says (shard, key, field)
    │   └── SkipSample     this sample only; counted by reason, fatal after N in a row
    └── CheckpointError    a file that cannot be a model of ours, or misses weights (which)

A message says what came, what was expected and what to do. `ValueError` stays what it is in Python: a bad
argument of a plain function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar


class SamTrainError(Exception):
    """Base of all errors that are meant to be read by the person who started the command."""


class ConfigError(SamTrainError):
    """A configuration names something that is not there, or values that cannot go together."""


class ShardError(SamTrainError):
    """A shard or a record in it is not what the schema says."""

    def __init__(self, message: str, *, shard: str = "", key: str = "", field: str = "") -> None:
        place = ", ".join(f"{n} {v}" for n, v in (("shard", shard), ("key", key), ("field", field)) if v)
        super().__init__(f"{message} ({place})" if place else message)
        self.shard, self.key, self.field = shard, key, field


class SkipSample(ShardError):
    """One sample cannot be used. `reason` is a short fixed name by which such samples are counted."""

    def __init__(self, reason: str, message: str = "", *, shard: str = "", key: str = "", field: str = "") -> None:
        super().__init__(message or reason, shard=shard, key=key, field=field)
        self.reason = reason


class CheckpointError(SamTrainError):
    """A file that cannot be a model of ours, or misses weights."""


P = ParamSpec("P")
R = TypeVar("R")


def exit_with_message(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate an entry point: an expected error ends the process with one message and exit code 1.

    `OSError` is in because a full disk and a forbidden folder are things that the user mends, not we.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (SamTrainError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped
