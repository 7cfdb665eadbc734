"""The identity of a run: the content of what it starts from, which must be the same when it resumes.

    {"init_checkpoint": "<SHA-256>", "teacher": "<SHA-256>", "data.shards": "2 shards, 140 images, SHA-256 <...>"}

A path says nothing about content: the file behind `init_checkpoint` or the shards of a folder may be replaced between two starts.
The hashes are taken at the first start, stored in the run folder, and compared at every later start; they are the provenance in
the checkpoints of the run. The same content at another path is the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from sam_train.checkpoint import checkpoint_hash
from sam_train.config import changed_values
from sam_train.data.sources import ShardSet
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.training.continuation import last_checkpoint

FILE = "identity.json"
RESUME_KEYS = (
    *("model", "data", "prompts", "losses", "optim", "training", "seed", "proposer", "trainer.precision"),
    *("init_checkpoint", "resume_from", "freeze_image_encoder", "lora", "teacher", "text"),
)
"""Config keys and groups that decide the weights and must not change when a run resumes. All others may change: steps, devices,
loggers, callbacks, caches."""
FREE_KEYS = (
    *("data.val_shards", "data.num_workers", "data.cache_dir", "data.cache_gb", "data.strict"),
    *("training.images_per_pass", "text.encoder.model"),
)
"""Keys inside RESUME_KEYS that do not decide the weights: validation, places, speed. The text encoder is compared by the hash
`model.text_encoder`."""
COMPARED_BY_CONTENT = ("init_checkpoint", "teacher", "data.shards", "data.sources")
"""Keys that name files: the content is compared, not the path."""
_PRECISIONS = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}
"""Other names of Lightning for a precision."""

Identity = Mapping[str, str]
"""Config key, and the hash or description of the content that it names."""


def run_identity(cfg: DictConfig, shards: ShardSet) -> Identity:
    """Return the identity of the run that a config describes.

    The run that `resume_from` names may be trained further: its checkpoint is hashed as long as this run has none of its own.
    Raises CheckpointError if a checkpoint does not exist.
    """
    hashes = {key: checkpoint_hash(cfg[key]) for key in ("init_checkpoint", "teacher") if cfg[key]}
    if cfg.resume_from:
        run_dir = Path(cfg.run_dir)
        has_begun = (run_dir / "checkpoints" / "last.ckpt").is_file() or (run_dir / "metrics.json").is_file()
        stored = (read_identity(run_dir) or {}).get("resume_from") if has_begun else None
        hashes["resume_from"] = stored or checkpoint_hash(last_checkpoint(cfg.resume_from))
    return {**hashes, "data.shards": describe_shards(shards)}


def describe_shards(shards: ShardSet) -> str:
    """Return number, images and hash of training shards, in their order and with their weights."""
    digest = hashlib.sha256()
    for index, weight in zip(shards.indexes, shards.weights or [1.0] * len(shards.indexes), strict=True):
        digest.update(f"{index.content_hash} {weight:g}\n".encode())
    return f"{len(shards.indexes)} shards, {shards.num_images} images, SHA-256 {digest.hexdigest()}"


def check_same_run(cfg: DictConfig, identity: Identity, run_dir: Path) -> None:
    """Raise ConfigError, with each key, its old and its new value, if a run folder holds a run that these would not continue."""
    stored = read_identity(run_dir)
    free = (*FREE_KEYS, *(COMPARED_BY_CONTENT if stored else ()))  # an earlier version stored the paths alone
    changes = [
        change
        for change in changed_values(cfg, run_dir / "config.yaml", RESUME_KEYS, free)
        if change.key != "trainer.precision" or _precision(change.before) != _precision(change.now)
    ]
    texts = [str(change) for change in changes]
    for key in stored if stored is not None else ():
        if stored and stored[key] != identity.get(key, "nothing"):
            texts.append(f"content of {key} (was {stored[key]}, now {identity.get(key, 'nothing')})")
    texts += [f"{key} (was nothing, now {identity[key]})" for key in identity if stored is not None and key not in stored]
    if texts:
        shown = ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
        remedy = "restore the old values and files, set another name=..., or remove the folder to start again"
        raise ConfigError(f"{run_dir} holds a run with another {shown}: {remedy}")


def write_identity(run_dir: Path, identity: Identity) -> None:
    """Store the identity of a run in its folder."""
    atomic_write_bytes(run_dir / FILE, (json.dumps(dict(identity), indent=1) + "\n").encode())


def read_identity(run_dir: Path) -> dict[str, str] | None:
    """Return the stored identity of a run, None for a run of an earlier version. Raises CheckpointError for an invalid file."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON ({error}): restore it, or remove the folder {run_dir} to start again"
        ) from error
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise CheckpointError(f"{path} is not the identity of a run: restore it, or remove the folder {run_dir} to start again")
    return document


def provenance_of(identity: Identity) -> dict[str, str]:
    """Return the hashes of initial weights, teacher and continued run as the provenance of a checkpoint names them."""
    names = {"init": "init_checkpoint", "teacher": "teacher", "resumed_from": "resume_from"}
    return {name: identity[key] for name, key in names.items() if key in identity}


def _precision(value: object) -> str:
    return _PRECISIONS.get(str(value), str(value))
