"""Options of Lightning's trainer that a run does not support are one message that names the option to set instead."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from sam_train.config import build, config_dir
from sam_train.errors import ConfigError
from sam_train.training.trainer_options import check_trainer_options, explain_fit_errors


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+trainer.accumulate_grad_batches=4", "data.images_per_step"),
        ("+trainer.gradient_clip_val=1.0", "set training.gradient_clip instead"),
        ("+trainer.fast_dev_run=true", "debug=one_batch"),
        ("+trainer.strategy=ddp", "set strategy= to a name of configs/strategy"),
        ("trainer.max_epochs=0", "set trainer.max_steps"),
        ("trainer.precision=bf16-true", "set trainer.precision=bf16-mixed or 32-true"),
        ("trainer.precision=16-true", "set trainer.precision=bf16-mixed or 32-true"),
        ("trainer.precision=64-true", "set trainer.precision=bf16-mixed or 32-true"),
        ("patience=3", "patience=3 needs a validation: give data.val_shards=SHARDS"),
        ("monitor=val/miou_at_3", "needs a validation: give data.val_shards=SHARDS"),
        (
            "+callbacks.stop={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/miou_at_1}",
            "callbacks.stop watches val/miou_at_1, which needs data.val_shards=SHARDS",
        ),
    ],
)
def test_names_the_option_to_set_instead(override: str, expected: str) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["data.shards=none.tar", override])
        plain = compose("train", ["data.shards=none.tar", "debug=overfit"])
    check_trainer_options(plain)
    with pytest.raises(ConfigError) as error:
        check_trainer_options(cfg)
    assert expected in str(error.value)
    assert override.lstrip("+").partition("=")[0].removesuffix(".stop") in str(error.value)


def test_a_negative_learning_rate_is_refused() -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["data.shards=none.tar", "optim.lr=-1"])
    with pytest.raises(ConfigError, match="lr and muon_lr must be at least 0, got -1"):
        build(cfg.optim)


def test_a_wrong_monitor_of_a_callback_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="the monitor of a callback is not a metric of this run"), explain_fit_errors():
        raise RuntimeError("Early stopping conditioned on metric `val/mio` which is not available.")
    with pytest.raises(RuntimeError, match="another error"), explain_fit_errors():
        raise RuntimeError("another error")
