"""Exceptions that this project raises deliberately.

    SamTrainError
    ├── ConfigError            a config names something that does not exist, or values that exclude each other
    ├── ShardError             a shard or record violates the schema (shard, key, field)
    │   └── SkipSampleError    one sample is unusable; counted by reason, fatal after N in a row
    ├── CheckpointError        a file is not a readable model, or lacks weights (names them)
    └── TrainingError          a run cannot continue
        └── NonFiniteError     a loss or a gradient is NaN or inf

A message states what was found, what was expected and what to do. `ValueError` keeps its Python meaning: an invalid
argument of a plain function.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

INTERRUPTED_EXIT_CODE = 130
"""Exit code of a command that Ctrl-C ended, as shells report it."""


class SamTrainError(Exception):
    """Base class of all errors whose message is written for the user of the command."""


class ConfigError(SamTrainError):
    """A configuration names something that does not exist, or values that exclude each other."""


class ShardError(SamTrainError):
    """A shard or a record in it violates the schema. `shard`, `key` and `field` locate it; each may be empty."""

    def __init__(self, message: str, *, shard: str = "", key: str = "", field: str = "") -> None:
        location = ", ".join(f"{n} {v}" for n, v in (("shard", shard), ("key", key), ("field", field)) if v)
        super().__init__(f"{message} ({location})" if location else message)
        self.shard, self.key, self.field = shard, key, field


class SkipSampleError(ShardError):
    """One sample cannot be used and is skipped. `reason` is a short fixed name under which such samples are counted."""

    def __init__(self, reason: str, message: str = "", *, shard: str = "", key: str = "", field: str = "") -> None:
        super().__init__(message or reason, shard=shard, key=key, field=field)
        self.reason = reason


class CheckpointError(SamTrainError):
    """A file is not a readable model, or lacks weights."""


class TrainingError(SamTrainError):
    """A training run cannot continue."""


class NonFiniteError(TrainingError):
    """A loss or a gradient of a training step is NaN or inf."""


_RERUN = "and run the same command again: it keeps its finished results"
_REMEDIES = {
    errno.ENOSPC: f"free space on that disk {_RERUN}",
    errno.EDQUOT: f"free space in your quota {_RERUN}",
    errno.EFBIG: f"raise the file size limit (ulimit -f) {_RERUN}",
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: "choose a path on a writable file system",
    errno.EEXIST: "a file exists where a folder is expected: choose another path",
    errno.ENOTDIR: "a file exists where a folder is expected: choose another path",
    errno.EISDIR: "a folder exists where a file is expected: choose another path",
}
"""Remedy to print for the error number of an OSError."""


def install_extra(extra: str) -> str:
    """Return the line that installs an extra of this package, for the message of an error."""
    return f"pip install '.[{extra}]' in a clone, elsewhere pip install 'sam-train[{extra}] @ git+URL' (docs/install.md)"


P = ParamSpec("P")
R = TypeVar("R")


def exit_with_message(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate an entry point so that an expected error ends the process with one message and exit code 1.

    Expected are `SamTrainError` and `OSError`: the user, not the code, fixes a full disk or a missing permission.
    Ctrl-C exits with INTERRUPTED_EXIT_CODE.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (SamTrainError, OSError) as error:
            print(f"error: {format_error(error)}", file=sys.stderr)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print("interrupted: run the same command again to resume", file=sys.stderr)
            raise SystemExit(INTERRUPTED_EXIT_CODE) from None

    return wrapped


def format_error(error: Exception) -> str:
    """Return the message of an error for the user, without a traceback and with a remedy for common OSErrors."""
    if isinstance(error, OSError):
        remedy = _REMEDIES.get(error.errno or 0)
        return f"{error}: {remedy}" if remedy else str(error)
    text, name = str(error), f"{type(error).__module__}.{type(error).__qualname__}: "
    # A DataLoader puts the full traceback of its worker into the message.
    return text.rpartition(name)[2].strip() if "\nOriginal Traceback" in text else text
