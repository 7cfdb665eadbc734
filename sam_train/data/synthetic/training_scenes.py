"""The scenes of a training run that are composed before its first step (`synthetic` of sam-train)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from sam_train.data.synthetic.corpus import write_corpus
from sam_train.errors import ConfigError

_REQUIRED = ("folder", "num_images")
_DEFAULTS: dict[str, Any] = {"seed": 0, "longest_side": 256, "images_per_shard": 50, "material": "patterns", "workers": 1}


def compose_training_scenes(synthetic: Mapping[str, Any]) -> None:
    """Compose the missing scenes of a run; the processes of a run on one machine do it once.

    synthetic: folder and num_images, and seed, longest_side, images_per_shard, material and workers of `write_corpus` where they
        differ from the defaults.

    Raises ConfigError for a missing or an unknown key, and as `write_corpus`.
    """
    unknown = sorted(set(synthetic) - set(_DEFAULTS) - set(_REQUIRED))
    missing = [key for key in _REQUIRED if synthetic.get(key) is None]
    if unknown or missing:
        problem = f"has the unknown keys {', '.join(unknown)}" if unknown else f"lacks {' and '.join(missing)}"
        raise ConfigError(f"synthetic {problem}: expected {', '.join(_REQUIRED)} and, where they differ, {', '.join(_DEFAULTS)}")
    options = _DEFAULTS | dict(synthetic)
    folder, side = Path(options.pop("folder")), options.pop("longest_side")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".composing"):
        write_corpus(folder, height=side, width=side, progress=True, **options)
