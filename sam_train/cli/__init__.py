"""The command line that all commands share: own help, "did you mean", checks that cost no heavy import.

`HydraCommand` is a command whose values are a Hydra config (sam-train, sam-evaluate, sam-export, sam-engine, sam-annotate,
sam-cycle), `FunctionCommand` one that takes NAME=VALUE for the parameters of a function (sam-report, `sam-cycle ledger`),
`ArgumentParser` the base of those with argparse options (sam-data). Nothing here imports torch: the work of a command is named
as "module:function" and imported after the command line was checked.
"""

from sam_train.cli.arguments import ArgumentParser
from sam_train.cli.function_command import FunctionCommand
from sam_train.cli.hydra_command import HydraCommand

__all__ = ["ArgumentParser", "FunctionCommand", "HydraCommand"]
