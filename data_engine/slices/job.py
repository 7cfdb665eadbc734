"""What is sent to a worker, and what it tells."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_engine.slices.run_folder import EngineRunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """A run in plain values: what a process, a SLURM task or a Ray worker is sent. Paths are absolute."""

    config: dict[str, Any]
    """The engine's config, resolved."""
    provenance: dict[str, str]

    @property
    def folder(self) -> EngineRunFolder:
        """The run's folder, as a new process sees it."""
        return EngineRunFolder(Path(self.config["out"]), self.config["claim_expires_s"])


class SliceStatus(Enum):
    """What became of a slice."""

    WRITTEN = "written"
    ALREADY_DONE = "there"
    """It was whole already."""
    HELD = "held"
    """Another process works on it, or took it over from this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """A slice that a worker was given."""

    index: int
    status: SliceStatus
    images: int = 0
    masks: int = 0
    skipped: int = 0
    seconds: float = 0.0


@runtime_checkable  # so that the type checks of the tests can ask
class ProgressListener(Protocol):
    """Whoever wants to know how far a worker is."""

    def begin(self, origin: str) -> None:
        """The picture `origin` comes next."""
        ...

    def add(self, *, images: int, masks: int, skipped: int) -> None:
        """So much more is done. A picture is an image or skipped."""
        ...


class SliceProgress:
    """Passes on what is told of a slice, and can take it back when nothing came of the slice."""

    def __init__(self, watch: ProgressListener) -> None:
        self._watch, self._sum = watch, Counter[str]()

    def begin(self, origin: str) -> None:
        """As `ProgressListener`."""
        self._watch.begin(origin)

    def add(self, *, images: int, masks: int, skipped: int) -> None:
        """As `ProgressListener`."""
        self._sum.update(images=images, masks=masks, skipped=skipped)
        self._watch.add(images=images, masks=masks, skipped=skipped)

    def revert(self) -> None:
        """Nothing of it is done after all."""
        self._watch.add(**{name: -self._sum[name] for name in ("images", "masks", "skipped")})


def with_absolute_paths(config: Mapping[str, Any], names: tuple[str, ...] = ("out", "checkpoint")) -> dict[str, Any]:
    """The config with these of its paths, a proposer's and privacy's made absolute: a worker may run in another folder."""
    found = {**config, **{name: os.path.abspath(os.path.expanduser(config[name])) for name in names if config.get(name)}}
    if (stage := config.get("stage")) and stage.get("generator"):
        found["stage"] = {**stage, "generator": with_absolute_paths(stage["generator"], ("file",))}
    if privacy := config.get("privacy"):
        detectors = {kind: with_absolute_paths(detector, ("file",)) for kind, detector in privacy["detectors"].items()}
        found["privacy"] = {**with_absolute_paths(privacy, ("take_down",)), "detectors": detectors}
    return found
