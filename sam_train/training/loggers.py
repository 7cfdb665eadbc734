"""The loggers of a run: metrics.csv, which every run has, and wandb, TensorBoard and MLflow, by the config key `logger`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from sam_train.config import to_plain
from sam_train.errors import ConfigError, install_extra
from sam_train.files import atomic_write_bytes
from sam_train.training.csv_logger import ResumableCSVLogger

LOGGERS = ("csv", "wandb", "tensorboard", "mlflow")
"""Values of `logger`."""


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """Return the CSV logger, and those that `logger` names, one or a list; wandb.enabled=false leaves wandb out.

    Raises ConfigError for an unknown name, a package that is not installed, and wandb.mode=online without a login.
    """
    names = requested_loggers(cfg)
    make: Mapping[str, Callable[[DictConfig, Path], Logger]] = {
        "wandb": _wandb_logger,
        "tensorboard": _tensorboard_logger,
        "mlflow": _mlflow_logger,
    }
    return [ResumableCSVLogger(run_dir / "csv"), *(make[name](cfg, run_dir) for name in names if name != "csv")]


def requested_loggers(cfg: DictConfig) -> list[str]:
    """Return the names in `logger` without repetition. Raises ConfigError for one that is not in LOGGERS."""
    value = to_plain(cfg)["logger"]
    names = list(dict.fromkeys(value if isinstance(value, list) else [value] if value else []))
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ConfigError(f"logger={unknown[0]}: expected one of {', '.join(LOGGERS)}, or several as logger=[tensorboard,wandb]")
    return [name for name in names if name != "wandb" or cfg.wandb.enabled]


def _wandb_logger(cfg: DictConfig, run_dir: Path) -> Logger:
    """Return the wandb logger, which mode=auto sets offline unless the user is logged in."""
    import wandb

    has_key = has_wandb_api_key()
    mode = ("online" if has_key else "offline") if cfg.wandb.mode == "auto" else cfg.wandb.mode
    if mode == "online" and not has_key:
        remedy = "run `wandb login`, or set wandb.mode=offline, or logger=csv"
        raise ConfigError(f"wandb.mode=online, but this machine is not logged in to wandb: {remedy}")
    options: dict[str, Any] = {"mode": mode, "settings": wandb.Settings(silent=True)}
    logger = WandbLogger(
        project=cfg.wandb.project, name=cfg.name, id=wandb_run_id(cfg.name, run_dir), save_dir=run_dir, **options
    )
    logger._wandb_init.pop("anonymous", None)  # wandb warns of it at each start, even if it is None
    return logger


def _tensorboard_logger(cfg: DictConfig, run_dir: Path) -> Logger:
    if not any(map(find_spec, ("tensorboard", "tensorboardX"))):
        raise ConfigError(f"logger=tensorboard needs tensorboard: {install_extra('tensorboard')}")
    return TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard")


def _mlflow_logger(cfg: DictConfig, run_dir: Path) -> Logger:
    """Return the MLflow logger, which continues the MLflow run that the run folder names."""
    if not find_spec("mlflow"):
        raise ConfigError(f"logger=mlflow needs mlflow: {install_extra('mlflow')}")
    path = run_dir / "mlflow_id"
    tracking_uri = cfg.mlflow.tracking_uri or f"sqlite:///{run_dir.resolve()}/mlflow.db"
    run_id = path.read_text().strip() if path.is_file() else None
    logger = MLFlowLogger(experiment_name=cfg.mlflow.experiment, run_name=cfg.name, tracking_uri=tracking_uri, run_id=run_id)
    if run_id is None:
        _store_mlflow_run(path, logger)
    return logger


@rank_zero_only
def _store_mlflow_run(path: Path, logger: MLFlowLogger) -> None:
    atomic_write_bytes(path, f"{logger.run_id}\n".encode())


def wandb_run_id(name: str, run_dir: Path) -> str:
    """Return the wandb id that is stored in the run folder; at the first start, store a new one.

    A resumed run continues its wandb run. The id ends in random digits, so a run of the same name in another folder, or after
    the folder was removed, is another wandb run.
    """
    path = run_dir / "wandb_id"
    if path.is_file():
        return path.read_text().strip()
    run_id = f"{re.sub(r'[^A-Za-z0-9_-]', '-', name)[:100]}-{token_hex(4)}"
    rank_zero_only(atomic_write_bytes)(path, f"{run_id}\n".encode())  # the other ranks do not log
    return run_id


def has_wandb_api_key() -> bool:
    """Return whether the user is logged in to wandb on this machine."""
    import wandb

    return bool(wandb.setup(settings=wandb.Settings(silent=True)).settings.api_key)


def describe_loggers(loggers: list[Logger]) -> list[str]:
    """Return where each logger has written, one text each, such as `csv/metrics.csv` or the address of a wandb run."""
    places = []
    for logger in loggers:
        if isinstance(logger, ResumableCSVLogger):
            places.append(str(Path(logger.log_dir) / "metrics.csv"))
        elif isinstance(logger, WandbLogger):
            places.append(f"wandb {getattr(logger.experiment, 'url', None) or logger.experiment.dir}")
        elif isinstance(logger, TensorBoardLogger):
            places.append(f"tensorboard --logdir {logger.log_dir}")
        elif isinstance(logger, MLFlowLogger):
            places.append(f"MLflow run {logger.run_id} at {logger._tracking_uri}")
    return places
