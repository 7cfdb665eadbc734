"""Seconds and megabytes, as the benchmarks take them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(call: Callable[[], Any], into: list[float]) -> Any:
    """What the call answers; its seconds are appended to `into`."""
    start = time.perf_counter()
    answer = call()
    into.append(time.perf_counter() - start)
    return answer


def measure_memory(call: Callable[[], Any]) -> tuple[float, float]:
    """Peak resident size in MB (Linux): of one call above what was there before it, and of the process so far."""
    process = peak_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before = peak_mb()
    call()
    return peak_mb() - before, max(process, peak_mb())


def peak_mb() -> float:
    """The process's peak resident size. Not ru_maxrss, which a child begins with that of the process that started it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3


def run_in_subprocess(script: str, *arguments: str) -> Any:
    """What the script prints as JSON when it runs with these arguments, in a process of its own."""
    command = [sys.executable, script, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def print_figures(figures: dict[str, Any]) -> None:
    """One line of JSON; four digits are more than such figures carry."""
    print(json.dumps({name: _rounded(value) for name, value in figures.items()}))


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
