"""Config keys and class paths that had another name in earlier versions.

A config that was stored by an earlier version (in a checkpoint, a run folder or an annotation store) is upgraded by
`upgrade_config` and still opens. A name that a user types is not translated: `check_overrides` raises an error that says
what it was renamed to, so that no old name lives on in scripts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sam_train.errors import ConfigError

KEYS: Mapping[str, str] = {
    "driver.at_once": "driver.array_parallelism",
    "driver.minutes": "driver.time_limit_min",
    "driver.requeues": "driver.max_requeues",
    "load_ahead": "num_prefetch",
    "losses.loser_weight": "losses.all_candidates_weight",
    "corpus.truth": "corpus.ground_truth",
    "journal": "result_cache",
    "proposals.words": "proposals.text_prompts",
    "protocol.datasets.*.get": "protocol.datasets.*.download",
    "protocol.few_masks": "protocol.subsample_to_masks",
    "protocol.many_masks": "protocol.subsample_above_masks",
    "protocol.pictures": "protocol.figures",
    "protocol.wordings": "protocol.paraphrases",
    "protocol.wordings.*.backwards": "protocol.wordings.*.reverse",
    "protocol.wordings.*.words": "protocol.wordings.*.synonyms",
    "protocol.generator.words": "protocol.generator.text_prompts",
    "stage.generator.words": "stage.generator.text_prompts",
    "details": "high_res_features",
    "model.details": "model.high_res_features",
    "num_ahead": "num_prefetch",
    "people_weight": "human_mask_weight",
    "prefill": "show_existing_masks",
    "reviewed": "reviewed_only",
    "sample": "num_audit_images",
    "callbacks.pictures": "callbacks.mask_images",
    "callbacks.speed": "callbacks.throughput",
    "plan.link_gb_per_s": "plan.interconnect_gb_per_s",
    "plan.share_encoder": "plan.shard_encoder",
    "plan.share_optimizer": "plan.shard_optimizer",
    "both": "semi",
    "confident": "semi",
    "grid": "automatic",
    "person": "manual",
    "start": "initial_model",
    "steps": "runner",
    "text_tables": "text_embedding_dir",
    "training.text_alignment": "training.text_alignment_weight",
    "data.names": "data.load_names",
    "prompts.num_empty_rounds": "prompts.num_mask_only_rounds",
    "text.wordings": "text.templates",
}
"""Dotted key of a command's config in an earlier version, and its dotted key today. Both lie in the same group.

The part `*` stands for any name, such as that of a data set; such keys are only translated in stored configs.
"""

OPTIONS: Mapping[tuple[str, str], str] = {("generator", "words"): "text_prompts"}
"""Config group and option of an earlier version, and the option of today."""

TARGETS: Mapping[str, str] = {
    "data_engine.cycle.LocalSteps": "data_engine.cycle.SubprocessRunner",
    "data_engine.cycle.SlurmSteps": "data_engine.cycle.SlurmRunner",
    "sam_train.evaluation.noc.ClicksNeededProtocol": "sam_train.evaluation.clicks_needed.ClicksNeededProtocol",
    "sam_train.evaluation.suite.SuiteProtocol": "sam_train.evaluation.sa23.Sa23Protocol",
    "sam_train.inference.AutomaticMaskGenerator": "sam_train.inference.GridMaskGenerator",
    "sam_train.inference.ProposedMasks": "sam_train.inference.BoxMaskGenerator",
    "sam_train.inference.WordMasks": "sam_train.inference.TextMaskGenerator",
    "sam_train.text.CropPrompts": "sam_train.text.CropEmbedder",
    "sam_train.text.NamePrompts": "sam_train.text.NameEmbedder",
    "sam_train.losses.boxes.BoxLoss": "sam_train.losses.box_loss.BoxLoss",
    "sam_train.training.callbacks.MaskPictures": "sam_train.training.callbacks.LogMaskImages",
    "sam_train.training.strategies.Replicated": "sam_train.training.strategies.SamDDPStrategy",
    "sam_train.training.strategies.ShardedEncoder": "sam_train.training.strategies.EncoderFSDP2Strategy",
    "sam_train.training.strategies.ShardedOptimizer": "sam_train.training.strategies.FairscaleOSSStrategy",
    "sam_train.training.throughput.Speed": "sam_train.training.throughput.ThroughputLogger",
    "sam_train.training.watching.Speed": "sam_train.training.throughput.ThroughputLogger",
}
"""`_target_` of an earlier version, and the one of today."""

CALLBACKS: Mapping[str, str] = {"WeightAverage": "WeightEMA", "LeaveOnSignal": "PreemptionCallback", "Stopwatch": "RunTimer"}
"""Class name of a callback in an earlier version, under which a Lightning checkpoint holds its state, and that of today."""


_ORIGINAL_TARGETS = {new: old for old, new in TARGETS.items()}
_ORIGINAL_KEYS = {new: old for old, new in KEYS.items()}


def check_overrides(overrides: Sequence[str], known: Collection[str] | None = None) -> None:
    """Raise ConfigError, with the new name, if a command-line override `key=value` sets a key that was renamed.

    known: top-level keys and groups of the command, None for all: a key of another command is not named.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        new = _renamed(key)
        if new is not None and (known is None or new.partition(".")[0] in known):
            raise ConfigError(f"{key}: renamed to {new}")
        if (option := _renamed_option(key, value)) is not None:
            raise ConfigError(f"{key}={value}: renamed to {key}={option}")
        if (upgraded := _upgrade_dict(key, value)) != value:
            raise ConfigError(f"{key}={value}: renamed to {key}={upgraded}")


def upgrade_config(config: Any) -> Any:
    """Return a stored plain config (dicts, lists, scalars) with the names of today.

    Keys, `_target_` values and override strings (`key=value`, as a cycle stores them) are translated; all else is
    returned as it is.
    """
    return _upgrade(config, ())


def with_original_names(config: Any) -> Any:
    """Return a plain config with the keys and `_target_` values of the earlier versions.

    Its hash does not change when a name does, so a run folder of an earlier version can be resumed.
    """
    return _with_original_names(config, ())


def _with_original_names(node: Any, path: tuple[str, ...]) -> Any:
    if isinstance(node, Mapping):
        return {
            _find_key(key, path, _ORIGINAL_KEYS): _ORIGINAL_TARGETS.get(value, value)
            if key == "_target_"
            else _with_original_names(value, (*path, str(key)))
            for key, value in node.items()
        }
    return [_with_original_names(value, path) for value in node] if isinstance(node, list) else node


def _upgrade(node: Any, path: tuple[str, ...]) -> Any:
    if isinstance(node, Mapping):
        return {_new_key(key, path): _upgrade_value(key, value, path) for key, value in node.items()}
    if isinstance(node, list):
        return [_upgrade_override(value) if isinstance(value, str) else _upgrade(value, path) for value in node]
    return node


def _upgrade_value(key: Any, value: Any, path: tuple[str, ...]) -> Any:
    if key == "_target_" and isinstance(value, str):
        return TARGETS.get(value, value)
    return _upgrade(value, (*path, str(key)))


def _upgrade_override(text: str) -> str:
    typed, equals, value = text.partition("=")
    key = typed.lstrip("+~")
    if not equals:
        return text
    prefix = typed[: len(typed) - len(key)]
    return f"{prefix}{_renamed(key) or key}={_renamed_option(key, value) or _upgrade_dict(key, value)}"


def _upgrade_dict(group: str, value: str) -> str:
    """Return the value of an override `group={key: value, ...}` with the names of today; any other value unchanged."""
    if value.startswith("{"):
        for old, new in KEYS.items():
            parent, _, name = old.rpartition(".")
            if parent == group:
                value = re.sub(rf"([{{,]\s*){re.escape(name)}(?=\s*:)", rf"\g<1>{new.rpartition('.')[2]}", value)
    return value


def _new_key(key: Any, path: tuple[str, ...]) -> Any:
    """Return the name of today of `key` in the group that lies at `path`."""
    return _find_key(key, path, KEYS)


def _find_key(key: Any, path: tuple[str, ...], names: Mapping[str, str]) -> Any:
    full = (*path, str(key))
    for name, other in names.items():
        parts = name.split(".")
        if len(parts) == len(full) and all(part in ("*", component) for part, component in zip(parts, full, strict=True)):
            return other.rpartition(".")[2]
    return key


def _renamed_option(key: str, value: str) -> str | None:
    """Return the name of today of an option of a config group, which `key` names as `group` or `group@package`."""
    return OPTIONS.get((key.partition("@")[0], value))


def _renamed(key: str) -> str | None:
    """Return the name of today of a dotted key or of a key below it, None if it has not changed."""
    for old, new in KEYS.items():
        if key == old or key.startswith(old + "."):
            return new + key[len(old) :]
    return None
