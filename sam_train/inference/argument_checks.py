"""Checks of single arguments. Each raises a ValueError that names the argument, what is expected, and what came."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

import numpy as np


def invalid(name: str, expected: str, value: object = None, *, got: str = "") -> ValueError:
    """Return the error of an argument. got: description of the value, in place of the value itself, which is shortened."""
    shown = got or " ".join(repr(value).split())
    return ValueError(f"{name} must be {expected}, got {shown if len(shown) <= 100 else shown[:97] + '...'}")


def check_number(name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number from `minimum` to `maximum`; a bool is none."""
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not is_number or not math.isfinite(value) or not minimum <= value <= maximum:
        raise invalid(name, f"a number{_range(minimum, maximum)}", value)


def check_integer(name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ValueError unless `value` is an integer from `minimum` to `maximum`; a bool is none."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if not is_integer or not minimum <= value <= maximum:
        raise invalid(name, f"an integer{_range(minimum, maximum)}", value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise invalid(name, f"one of {', '.join(map(repr, choices))}", value)


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise invalid(name, "True or False", value)


def check_type(name: str, value: Any, kind: type, remedy: str) -> None:
    """Raise ValueError unless `value` is an instance of `kind`. remedy: how to get one, for the message."""
    if not isinstance(value, kind):
        raise invalid(name, f"a {kind.__name__} ({remedy})", value)


def _range(minimum: float, maximum: float) -> str:
    if math.isinf(minimum):
        return "" if math.isinf(maximum) else f" of at most {maximum:g}"
    return f" of at least {minimum:g}" if math.isinf(maximum) else f" from {minimum:g} to {maximum:g}"
