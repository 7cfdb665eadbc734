"""The commands of data_engine, and their console scripts."""

from __future__ import annotations

from sam_train.cli import FunctionCommand, HydraCommand
from sam_train.cli.commands import CHECKPOINT

SOURCE = "a folder, a glob, a .txt list of images, or shards, here or at a URL"

ENGINE = HydraCommand(
    name="sam-engine",
    config="engine",
    summary="Run one stage of the data engine over a corpus of images and write shards.",
    handler="data_engine.engine:command",
    examples=(
        (
            "sam-engine stage=fully_automatic source=PHOTOS checkpoint=mobile_sam.pth out=SHARDS privacy=none",
            "Annotate all images of a folder without people.",
        ),
        (
            "sam-engine stage=fully_automatic source=PHOTOS checkpoint=mobile_sam.pth out=SHARDS dry_run=true",
            "Estimate speed, hours and bytes, and write nothing.",
        ),
    ),
    required={"source": "IMAGES", "out": "FOLDER"},
    inputs={"source": SOURCE, "checkpoint": CHECKPOINT},
)

_ANNOTATE_OUT = {"out": "FOLDER"}
EXPORT = HydraCommand(
    name="sam-annotate export",
    config="annotate",
    summary="Write the finished images of an annotation store as shards.",
    handler="data_engine.annotate:command",
    examples=(
        (
            "sam-annotate export corpus=PHOTOS out=runs/people",
            "Write what was finished since the last export into runs/people/shards.",
        ),
        ("sam-annotate export corpus=PHOTOS out=runs/people reviewed=true", "Write only what a reviewer accepted."),
    ),
    required={"corpus": "IMAGES", **_ANNOTATE_OUT},
    inputs={"corpus": SOURCE, "out": "the folder that sam-annotate was started with"},
    preset=("action=export",),
)
SUMMARY = HydraCommand(
    name="sam-annotate summary",
    config="annotate",
    summary="Print the cost per mask by annotator and checkpoint, the agreement of annotators, and the audit's result.",
    handler="data_engine.annotate:command",
    examples=(
        ("sam-annotate summary out=runs/people", "Summarise an annotation store; a running server is not disturbed."),
        ("sam-annotate summary out=runs/audit", "Report how far automatic masks were from their corrections."),
    ),
    required=_ANNOTATE_OUT,
    inputs={"out": "the folder that sam-annotate was started with"},
    preset=("action=summary",),
)
AUDIT = HydraCommand(
    name="sam-annotate audit",
    config="annotate",
    summary="Serve a random sample of images with their existing masks, to be corrected by annotators.",
    handler="data_engine.annotate:command",
    examples=(
        (
            "sam-annotate audit corpus=SHARDS checkpoint=mobile_sam.pth out=runs/audit annotators=[ann,bob] overlap=2",
            "Two annotators correct the same 500 images.",
        ),
        ("sam-annotate audit corpus=SHARDS out=runs/audit sample=50", "Correct 50 images with the brush, without a model."),
    ),
    required={"corpus": "SHARDS", **_ANNOTATE_OUT},
    inputs={"corpus": SOURCE, "checkpoint": CHECKPOINT},
    preset=("action=audit",),
)
ANNOTATE = HydraCommand(
    name="sam-annotate",
    config="annotate",
    summary="Serve the annotation tool: people annotate images in a browser, with the model's help.",
    handler="data_engine.annotate:command",
    examples=(
        (
            "sam-annotate corpus=PHOTOS checkpoint=mobile_sam.pth out=runs/people annotators=[ann,bob] reviewers=[eve]",
            "Start the server on 127.0.0.1:8765 and print a login link for each name.",
        ),
        (
            "sam-annotate corpus=PHOTOS out=runs/people privacy=none",
            "Annotate with the brush, without a model; no faces in the images.",
        ),
    ),
    subcommands={"audit": AUDIT, "export": EXPORT, "summary": SUMMARY},
    required={"corpus": "IMAGES", **_ANNOTATE_OUT},
    inputs={"corpus": SOURCE, "checkpoint": CHECKPOINT},
)

_RUN = "folder of the cycle, for example runs/quickstart"
STEP = FunctionCommand(
    name="sam-cycle step",
    summary="Run one action of a cycle; SLURM jobs of a cycle call it.",
    handler="data_engine.cycle.command:step",
    parameters={"run": _RUN, "name": "the action, for example 2_assisted_manual/train"},
    required=("run", "name"),
    paths=("run",),
    examples=(("sam-cycle step run=runs/quickstart name=2_assisted_manual/train", "Train on the masks of the second step."),),
)
ROLLBACK = FunctionCommand(
    name="sam-cycle rollback",
    summary="Make the model of an earlier step the promoted one again, and record since when and why.",
    handler="data_engine.cycle.command:rollback",
    parameters={
        "run": _RUN,
        "step": "the step whose model is promoted, for example 1_assisted_manual",
        "reason": "text for promoted.json",
    },
    required=("run", "step"),
    paths=("run",),
    examples=(
        (
            "sam-cycle rollback run=runs/quickstart step=1_assisted_manual reason='new masks are coarse'",
            "Return to the first model.",
        ),
    ),
    renamed={"because": "reason"},
)
LEDGER = FunctionCommand(
    name="sam-cycle ledger",
    summary="Show which annotator, model and prompts made each mask of a cycle.",
    handler="data_engine.cycle.command:ledger",
    parameters={"run": _RUN, "image": "key of one image: its masks are listed", "out": "Parquet file for the whole table"},
    required=("run",),
    paths=("run",),
    examples=(
        ("sam-cycle ledger run=runs/quickstart", "Summarise by step, annotator and model."),
        ("sam-cycle ledger run=runs/quickstart out=masks.parquet", "Write one row per mask."),
    ),
)
ABLATION = FunctionCommand(
    name="sam-cycle ablation",
    summary="Train on the masks of some stages alone, all from one model, and compare (paper, section 7.6).",
    handler="data_engine.cycle.command:ablation",
    parameters={"run": _RUN, "training": "overrides of every sam-train, separated by blanks"},
    required=("run",),
    paths=("run",),
    examples=(
        ("sam-cycle ablation run=runs/quickstart training='trainer.max_steps=200'", "Compare the stages by short trainings."),
    ),
)
REPORT = FunctionCommand(
    name="sam-report",
    summary="Write report.json and report.html of a cycle, finished or not, and print its stage table.",
    handler="data_engine.report.command:report",
    parameters={"run": _RUN, "heldout_images": "held-out images on which the models are compared (24)"},
    required=("run",),
    paths=("run",),
    examples=(
        ("sam-report run=runs/quickstart", "Write runs/quickstart/report.html."),
        ("sam-report run=runs/quickstart heldout_images=100", "Compare the models on 100 images."),
    ),
)
CYCLE = HydraCommand(
    name="sam-cycle",
    config="cycle",
    summary="Run the data-engine loop: annotate, train, evaluate and promote, stage after stage.",
    handler="data_engine.cycle.command:command",
    examples=(
        ("sam-cycle experiment=smoke", "Run the whole loop on a tiny embedded corpus in about a minute."),
        ("sam-cycle experiment=quickstart runner=slurm", "Run every step as a SLURM job that waits for the one before it."),
    ),
    subcommands={"step": STEP, "rollback": ROLLBACK, "ledger": LEDGER, "ablation": ABLATION},
    inputs={"initial_model.checkpoint": CHECKPOINT},
    has_experiments=True,
)


def engine() -> None:
    """Console script `sam-engine`."""
    ENGINE.main()


def annotate() -> None:
    """Console script `sam-annotate`."""
    ANNOTATE.main()


def cycle() -> None:
    """Console script `sam-cycle`."""
    CYCLE.main()


def report() -> None:
    """Console script `sam-report`."""
    REPORT.main()
