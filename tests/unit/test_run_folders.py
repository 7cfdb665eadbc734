"""A run's name stays inside the folder of runs, and the jobs of a sweep have a folder each."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_train.cli.commands import TRAIN
from sam_train.cli.overrides import checked_config
from sam_train.config import config_dir
from sam_train.errors import ConfigError


def check(*overrides: str, multirun: bool = False) -> None:
    checked_config(TRAIN, ["data.shards=none.tar", *overrides], Path(config_dir()), multirun=multirun)


@pytest.mark.parametrize("name", ["''", "../../escape", "/tmp/run", "a/../../b", "' '", "null"])
def test_name_that_leaves_the_folder_of_runs_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a run folder"):
        check(f"name={name}")


@pytest.mark.parametrize("name", ["mine", "debug/one_batch", "3", "a..b"])
def test_other_names_are_accepted(name: str) -> None:
    check(f"name={name}")


def test_sweep_whose_jobs_share_a_folder_is_refused() -> None:
    expected = (
        r"optim\.lr=0\.001 and optim\.lr=0\.0001 of this sweep would both write to runs/train: give name='mine-\$\{optim\.lr\}'"
    )
    with pytest.raises(ConfigError, match=expected):
        check("optim.lr=1e-3,1e-4", multirun=True)
    with pytest.raises(ConfigError, match="seed=0 and seed=1 of this sweep would both write to runs/a"):
        check("name=a,b", "seed=0,1", multirun=True)


def test_sweep_with_a_folder_for_each_job_is_accepted() -> None:
    check("optim.lr=1e-3,1e-4", "name='mine-${optim.lr}'", multirun=True)
    check("name=a,b", multirun=True)
    check("seed=range(0,3)", "run_dir='runs/sweep/${seed}'", multirun=True)
