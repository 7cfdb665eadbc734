"""The job that a worker receives, and the progress and results that it reports."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_engine.slices.run_folder import EngineRunFolder
from sam_train.weights import is_weights_name


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """A run in plain values that can be sent to a process, a SLURM task or a Ray worker. Paths are absolute."""

    config: dict[str, Any]
    """Resolved config of the engine."""
    provenance: dict[str, str]
    """Everything that determines the bytes of the shards; it is written into every manifest."""

    @property
    def folder(self) -> EngineRunFolder:
        """The run folder, opened anew."""
        return EngineRunFolder(Path(self.config["out"]), self.config["claim_expires_s"])


class SliceStatus(Enum):
    """State of a slice after a worker tried to make it."""

    WRITTEN = "written"
    """This worker wrote the shard."""
    ALREADY_DONE = "already_done"
    """The shard was complete before."""
    HELD_ELSEWHERE = "held_elsewhere"
    """Another process holds the slice, or took it over from this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """Result of one slice, as a worker reports it."""

    index: int
    status: SliceStatus
    images: int = 0
    masks: int = 0
    skipped: int = 0
    seconds: float = 0.0


@runtime_checkable  # the runtime type checks of the tests need it
class ProgressListener(Protocol):
    """Receives the progress of a worker."""

    def start_image(self, origin: str) -> None:
        """Receive that the image `origin` is next."""
        ...

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        """Receive the increments since the last call. A source image counts either in `images` or in `skipped`."""
        ...


class SliceProgress:
    """Forwards the progress of one slice to a listener, and subtracts it again if the slice is not completed."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener, self._sum = listener, Counter[str]()

    def start_image(self, origin: str) -> None:
        """Implement `ProgressListener`."""
        self._listener.start_image(origin)

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        """Implement `ProgressListener`."""
        self._sum.update(images=images, masks=masks, skipped=skipped)
        self._listener.advance(images=images, masks=masks, skipped=skipped)

    def revert(self) -> None:
        """Subtract everything that was forwarded."""
        self._listener.advance(**{name: -self._sum[name] for name in ("images", "masks", "skipped")})


def with_absolute_paths(config: Mapping[str, Any], names: tuple[str, ...] = ("out", "checkpoint")) -> dict[str, Any]:
    """Return the config with absolute paths, because a worker may run in another folder.

    The keys `names`, except for weights by name, the file of the stage's generator, and the files of `privacy` are made absolute.
    """
    given = {name: config[name] for name in names if config.get(name) and not is_weights_name(config[name])}
    result = {**config, **{name: os.path.abspath(os.path.expanduser(value)) for name, value in given.items()}}
    if (stage := config.get("stage")) and stage.get("generator"):
        result["stage"] = {**stage, "generator": with_absolute_paths(stage["generator"], ("file",))}
    if privacy := config.get("privacy"):
        detectors = {kind: with_absolute_paths(detector, ("file",)) for kind, detector in privacy["detectors"].items()}
        result["privacy"] = {**with_absolute_paths(privacy, ("take_down",)), "detectors": detectors}
    return result
