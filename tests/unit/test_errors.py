from __future__ import annotations

import pickle

import pytest

from sam_train.errors import CheckpointError, ConfigError, SamTrainError, ShardError, SkipSampleError, exit_with_message


def test_error_hierarchy_matches_the_docstring() -> None:
    assert {ConfigError, ShardError, CheckpointError} <= set(SamTrainError.__subclasses__())
    assert SkipSampleError.__bases__ == (ShardError,)
    assert not issubclass(SamTrainError, ValueError)


def test_shard_error_names_its_location() -> None:
    error = ShardError("missing key", shard="a.tar", key="sa_1", field="image.width")
    assert str(error) == "missing key (shard a.tar, key sa_1, field image.width)"
    assert (error.shard, error.key, error.field) == ("a.tar", "sa_1", "image.width")


def test_shard_error_omits_unknown_parts() -> None:
    assert str(ShardError("truncated")) == "truncated"
    assert str(ShardError("truncated", key="sa_1")) == "truncated (key sa_1)"


def test_skip_sample_falls_back_to_its_reason() -> None:
    assert str(SkipSampleError("no_masks", key="sa_1")) == "no_masks (key sa_1)"
    assert str(SkipSampleError("no_masks", "the image has none")) == "the image has none"


@pytest.mark.parametrize(
    "error",
    [ShardError("truncated", shard="a.tar", key="k", field="f"), SkipSampleError("reason", "words", shard="a.tar", key="k")],
)
def test_errors_survive_pickling(error: ShardError) -> None:
    returned = pickle.loads(pickle.dumps(error))  # noqa: S301 (what was just pickled)
    assert type(returned) is type(error)
    assert str(returned) == str(error)
    assert vars(returned) == vars(error)


@pytest.mark.parametrize(
    "error", [ConfigError("no such experiment"), OSError("disk full"), SkipSampleError("r", "no such experiment")]
)
def test_expected_errors_end_with_one_line_and_code_one(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @exit_with_message
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_unexpected_errors_keep_their_traceback() -> None:
    @exit_with_message
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_arguments_and_result_pass_through() -> None:
    @exit_with_message
    def main(a: int, *, b: int) -> int:
        """Doc."""
        return a + b

    assert main(1, b=2) == 3
    assert (main.__name__, main.__doc__) == ("main", "Doc.")
