"""CPU seconds until each command has printed its help, or refused a misspelled key or a missing file.

    python tests/benchmarks/startup.py

Each case is a process of its own, run three times; the smallest CPU time (user + system) counts. The named peer is
`python -c "import torch"` in the same run, which a command pays that imports its work before it reads its arguments.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from measurement import print_figures

REPEATS = 3
MISSING = "no/such/place"
CASES: dict[str, dict[str, list[str]]] = {
    "sam-train": {"help": ["--help"], "misspelled": ["data.sharsd=x"], "missing": [f"data.shards={MISSING}"]},
    "sam-train plan": {"help": ["--help"], "misspelled": ["plan.gpuu=x"]},
    "sam-evaluate": {
        "help": ["--help"],
        "misspelled": ["checkpiont=x"],
        "missing": [f"checkpoint={MISSING}", "shards=x"],
    },
    "sam-export": {"help": ["--help"], "misspelled": ["formt=onnx"], "missing": [f"checkpoint={MISSING}", "out=x"]},
    "sam-engine": {"help": ["--help"], "misspelled": ["soruce=x"], "missing": [f"source={MISSING}", "out=x"]},
    "sam-annotate": {"help": ["--help"], "misspelled": ["corpsu=x"], "missing": [f"corpus={MISSING}", "out=x"]},
    "sam-cycle": {"help": ["--help"], "misspelled": ["satges=x"], "missing": [f"initial_model.checkpoint={MISSING}"]},
    "sam-report": {"help": ["--help"], "misspelled": ["rum=x"], "missing": [f"run={MISSING}"]},
    "sam-data": {"help": ["--help"], "misspelled": ["imprt"], "missing": ["validate", MISSING]},
}


def cpu_seconds(command: list[str], folder: Path) -> tuple[float, int]:
    """Return the CPU seconds of a process and its exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, code


def measure(name: str, arguments: list[str], folder: Path, *, fails: bool) -> float:
    """Return the smallest CPU time of a command line, which must end with or without an error as expected."""
    script, *words = name.split()
    command = [str(Path(sys.executable).with_name(script)), *words, *arguments]
    runs = [cpu_seconds(command, folder) for _ in range(REPEATS)]
    if any((code != 0) != fails for _, code in runs):
        raise SystemExit(f"{' '.join(command)} ended with {[code for _, code in runs]}")
    return round(min(seconds for seconds, _ in runs), 2)


def main() -> None:
    """Print one JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        times = {
            name: {case: measure(name, arguments, Path(folder), fails=case != "help") for case, arguments in cases.items()}
            for name, cases in CASES.items()
        }
        peer = min(cpu_seconds([sys.executable, "-c", "import torch"], Path(folder))[0] for _ in range(REPEATS))
    worst = max(seconds for cases in times.values() for seconds in cases.values())
    print_figures({"cpu_s": times, "worst_s": worst, "import_torch_s": round(peer, 2), "ratio": round(worst / peer, 2)})


if __name__ == "__main__":
    main()
