"""The commands of sam_train, and their console scripts."""

from __future__ import annotations

from collections.abc import Sequence

from sam_train.cli.hydra_command import HydraCommand
from sam_train.errors import exit_with_message
from sam_train.weights import NAMED_WEIGHTS

CHECKPOINT = (
    "the model.pt of a run, for example runs/<name>/model.pt, released weights (.pth, .safetensors, a Hugging Face folder), or a "
    f"name ({', '.join(NAMED_WEIGHTS)})"
)
SHARDS = "a folder, a glob or a brace range of .tar files, here or at a URL"

PLAN = HydraCommand(
    name="sam-train plan",
    config="plan",
    summary="Estimate time, memory and network traffic of a training run from its config, without a GPU.",
    handler="sam_train.plan:command",
    examples=(
        ("sam-train plan experiment=vit_h_sa1b plan.gpu=a100-80gb plan.num_gpus=256", "Estimate the paper's run on 256 GPUs."),
        (
            "sam-train plan model=vit_b plan.gpu=rtx4090-24gb plan.out=plan.json",
            "Write the estimate for one consumer GPU as JSON too.",
        ),
    ),
    has_experiments=True,
)
TRAIN = HydraCommand(
    name="sam-train",
    config="train",
    summary="Train a promptable segmentation model on shards.",
    handler="sam_train.train:command",
    examples=(
        ("sam-train experiment=nuclei", "Run an experiment: a set of overrides that was measured."),
        (
            "sam-train data.shards=SHARDS data.val_shards=HELDOUT init_checkpoint=mobile_sam.pth name=mine",
            "Fine-tune released weights on your shards; the run is written to runs/mine.",
        ),
    ),
    subcommands={"plan": PLAN},
    inputs={"data.shards": SHARDS, "data.val_shards": SHARDS, "init_checkpoint": CHECKPOINT, "teacher": CHECKPOINT},
    has_experiments=True,
)
EVALUATE = HydraCommand(
    name="sam-evaluate",
    config="evaluate",
    summary="Measure a checkpoint by an evaluation protocol and print the metrics beside the paper's.",
    handler="sam_train.evaluate:command",
    examples=(
        (
            "sam-evaluate checkpoint=runs/nuclei/model.pt shards=runs/nuclei_shards/heldout",
            "Measure mIoU after 1, 3 and 5 clicks.",
        ),
        (
            "sam-evaluate checkpoint=mobile_sam.pth protocol=edges protocol.images=IMAGES protocol.labels=LABELS out=edges.json",
            "Measure zero-shot edge detection and write the metrics as JSON.",
        ),
    ),
    required={"checkpoint": "FILE"},
    inputs={"checkpoint": CHECKPOINT, "shards": SHARDS},
)
EXPORT = HydraCommand(
    name="sam-export",
    config="export",
    summary="Write a checkpoint for other programs: ONNX, released names (pth, safetensors, Hugging Face) or model.pt.",
    handler="sam_train.export:command",
    examples=(
        (
            "sam-export checkpoint=runs/nuclei/model.pt out=runs/nuclei/onnx",
            "Write encoder.onnx and decoder.onnx, checked against torch.",
        ),
        (
            "sam-export checkpoint=runs/nuclei out=FOLDER format=pt",
            "Write model.pt from the last checkpoint of an unfinished run.",
        ),
    ),
    required={"checkpoint": "FILE", "out": "FOLDER"},
    inputs={"checkpoint": CHECKPOINT},
)


def train() -> None:
    """Console script `sam-train`."""
    TRAIN.main()


def evaluate() -> None:
    """Console script `sam-evaluate`."""
    EVALUATE.main()


def export() -> None:
    """Console script `sam-export`."""
    EXPORT.main()


@exit_with_message
def data(arguments: Sequence[str] | None = None) -> None:
    """Console script `sam-data`."""
    from sam_train.cli.data_command import run

    run(arguments)
