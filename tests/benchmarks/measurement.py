"""Measurement of time and memory for benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(call: Callable[[], Any], into: list[float]) -> Any:
    """Return the result of the call and append its duration in seconds to `into`."""
    start = time.perf_counter()
    result = call()
    into.append(time.perf_counter() - start)
    return result


def measure_memory(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the increase of peak resident memory during the call and the peak of the process, in MB (Linux)."""
    process = peak_mb()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
    before = peak_mb()
    call()
    return peak_mb() - before, max(process, peak_mb())


def peak_mb() -> float:
    """Return the peak resident memory of the process in MB; a child process would inherit its parent's ru_maxrss."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3


def run_in_subprocess(script: str, *arguments: str) -> Any:
    """Run a script with these arguments in a separate process and return the JSON that it prints."""
    command = [sys.executable, script, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures as one line of JSON, rounded to four digits."""
    print(json.dumps({name: _rounded(value) for name, value in figures.items()}))


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
