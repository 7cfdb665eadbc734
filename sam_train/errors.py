"""Everything this project raises on purpose.

    SamTrainError
    ├── ConfigError        names something that is not there, or values that cannot go together
    ├── ShardError         a shard or record is not what the schema says (shard, key, field)
    │   └── SkipSampleError     this sample only; counted by reason, fatal after N in a row
    ├── CheckpointError    a file that cannot be a model of ours, or misses weights (which)
    └── TrainingError      a loss is no number any more

A message says what came, what was expected and what to do. `ValueError` stays what it is in Python: a bad
argument of a plain function.
"""

from __future__ import annotations

import errno
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


class SkipSampleError(ShardError):
    """One sample cannot be used. `reason` is a short fixed name by which such samples are counted."""

    def __init__(self, reason: str, message: str = "", *, shard: str = "", key: str = "", field: str = "") -> None:
        super().__init__(message or reason, shard=shard, key=key, field=field)
        self.reason = reason


class CheckpointError(SamTrainError):
    """A file that cannot be a model of ours, or misses weights."""


class TrainingError(SamTrainError):
    """A run that cannot go on as it is: its loss is no number any more."""


_TRY_AGAIN = "and start the same command again: what is finished stays"
_WHAT_TO_DO = {
    errno.ENOSPC: f"free space on that disk {_TRY_AGAIN}",
    errno.EDQUOT: f"free space in your quota {_TRY_AGAIN}",
    errno.EFBIG: f"raise the limit on the size of a file (ulimit -f) {_TRY_AGAIN}",
    errno.EACCES: "change its permissions or name another place",
    errno.EPERM: "change its permissions or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.EEXIST: "a file stands where a folder is wanted: name another place",
    errno.ENOTDIR: "a file stands where a folder is wanted: name another place",
    errno.EISDIR: "a folder stands where a file is wanted: name another place",
}

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
            print(f"error: {format_error(error)}", file=sys.stderr)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print("interrupted: start the same command again to go on", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


def format_error(error: Exception) -> str:
    """What to print of an error: for the person who started the command, without the way the error came."""
    if isinstance(error, OSError):
        what_to_do = _WHAT_TO_DO.get(error.errno or 0)
        return f"{error}: {what_to_do}" if what_to_do else str(error)
    text, name = str(error), f"{type(error).__module__}.{type(error).__qualname__}: "
    # A DataLoader puts the whole traceback of its worker into the message.
    return text.rpartition(name)[2].strip() if "\nOriginal Traceback" in text else text
