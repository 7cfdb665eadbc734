"""Runs that train a part of a model: by LoRA, or the image encoder alone on a teacher's embeddings.

What comes out is a plain model, which goes straight into the predictor and the automatic generator; a run that was killed ends
bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from PIL import Image

from sam_train.checkpoint import checkpoint_hash, load_checkpoint, save_checkpoint
from sam_train.config import build, config_dir
from sam_train.errors import CheckpointError, ConfigError
from sam_train.inference import GridMaskGenerator, load_predictor
from sam_train.model import Sam
from sam_train.shards import write_shard
from sam_train.structures import PointLabel, Prompts
from sam_train.train import train_model
from sam_train.training.distillation import copy_teacher_decoder
from sam_train.training.step_module import StepModule

STEPS = 6
RUN = [
    "wandb.enabled=false",
    "~callbacks",
    "threads=1",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "checkpoint_every_n_steps=2",
    "prompts={num_corrections: 1, num_mask_only_rounds: 0}",
    "data.images_per_step=2",
    "model.image_size=64",
]
MOBILE_SAM = {
    "_target_": "sam_train.model.build.build_mobile_sam", "image_size": 64, "embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2], "window_sizes": [2, 2, 2, 2], "prompt_dim": 32, "decoder_mlp_dim": 64, "decoder_heads": 2,
}  # fmt: skip
VIT = {
    "_target_": "sam_train.model.build.build_sam", "image_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2,
    "num_heads": 2, "global_attn_indexes": [1], "window_size": 2, "prompt_dim": 32, "decoder_mlp_dim": 64, "decoder_heads": 2,
}  # fmt: skip


class KilledError(BaseException):
    """Simulates SIGKILL: no `except Exception` catches it."""


@pytest.fixture(scope="module")
def samples() -> list[Any]:
    return [make_sample(index) for index in range(4)]


@pytest.fixture(scope="module")
def shards(samples: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", samples)
    return folder


def train(shards: Path, run_dir: Path, model: dict[str, Any], *overrides: str) -> dict[str, float]:
    group = "mobile_sam" if "mobile" in model["_target_"] else "vit_b"
    values = ", ".join(f"{key}: {value}" for key, value in model.items())
    places = [f"data.shards={shards}", f"run_dir={run_dir}", f"model={group}", f"++model={{{values}}}"]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return train_model(compose("train", overrides=[*places, *RUN, *overrides]))


def train_and_kill(at: int, shards: Path, run_dir: Path, model: dict[str, Any], *overrides: str) -> None:
    original = StepModule.training_step

    def until(self: StepModule, batch: object, batch_idx: int) -> None:
        if self.global_step == at:
            raise KilledError
        original(self, batch, batch_idx)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepModule, "training_step", until)
        with pytest.raises(KilledError):
            train(shards, run_dir, model, *overrides)


def log_of(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "csv" / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row[name]]


def decoded_image(sample: Any, tmp_path: Path) -> np.ndarray:
    (tmp_path / "image.jpg").write_bytes(sample[1])
    return np.asarray(Image.open(tmp_path / "image.jpg"))


def check_same(resumed: Path, uninterrupted: Path) -> None:
    expected, actual = (load_checkpoint(folder / "model.pt").state_dict() for folder in (uninterrupted, resumed))
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, actual[name])] == []
    assert log_of(resumed, "train/loss") == log_of(uninterrupted, "train/loss")


@pytest.mark.parametrize("numbers", [MOBILE_SAM, VIT], ids=["mobile_sam", "vit"])
def test_lora_training_writes_a_plain_model(numbers: dict[str, Any], shards: Path, samples: list[Any], tmp_path: Path) -> None:
    before: Sam = build(numbers)
    save_checkpoint(tmp_path / "sam.pt", before, numbers, {})
    options = ["lora=attention", "lora.rank=2", f"init_checkpoint={tmp_path / 'sam.pt'}", "optim.warmup_steps=1"]
    train(shards, tmp_path / "run", numbers, *options)

    after = load_checkpoint(tmp_path / "run" / "model.pt")
    names = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after.state_dict()[name])}
    assert {name for name in names if name.startswith("image_encoder")} == {
        name for name in before.state_dict() if name.endswith(("attn.qkv.weight", "attn.proj.weight"))
    }
    assert "mask_decoder.iou_token.weight" in names

    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    adapters = [name for name in checkpoint["state_dict"] if ".lora_" in name]
    rest = [name for name in before.state_dict() if not name.startswith("image_encoder") and "gaussian" not in name]
    (optimizer,) = checkpoint["optimizer_states"]
    assert len(optimizer["state"]) == len(adapters) + len(rest)

    image = decoded_image(samples[0], tmp_path)
    predictor = load_predictor(tmp_path / "run" / "model.pt")
    predictor.set_image(image)
    one = torch.zeros(1, dtype=torch.long)
    prompts = Prompts.from_points(one, torch.tensor([[[20.0, 20.0]]]), torch.full((1, 1), PointLabel.FOREGROUND))
    assert predictor.predict_prompts(prompts, multimask_output=True).mask_logits.shape == (1, 3, 16, 16)
    everything = GridMaskGenerator(
        points_per_side=4, pred_iou_thresh=-10, stability_score_thresh=0, box_nms_thresh=1.0, min_region_area_px=0
    )
    assert everything.generate(after, image)[0]

    train_and_kill(3, shards, tmp_path / "resumed", numbers, *options)
    train(shards, tmp_path / "resumed", numbers, *options)
    check_same(tmp_path / "resumed", tmp_path / "run")
    with pytest.raises(ConfigError, match="a run with another lora"):
        train(shards, tmp_path / "run", numbers, *options, "lora.rank=4", "trainer.max_steps=9")


def with_random_hypernetworks(model: Sam) -> Sam:
    """Return the model with random hypernetworks, so that it predicts masks instead of background everywhere."""
    for parameter in model.mask_decoder.output_hypernetworks_mlps.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def middle_click_logits(model: Sam, images: list[np.ndarray]) -> torch.Tensor:
    """Return the mask logits for a click in the middle of each image."""
    with torch.no_grad():
        tensors = torch.stack([torch.from_numpy(np.pad(i, ((0, 16), (0, 0), (0, 0)))).permute(2, 0, 1) for i in images])
        embeddings = model.encode_images(tensors, torch.tensor([[48, 64]] * len(images)))
        places = torch.tensor([[[32.0, 24.0]]]).expand(len(images), 1, 2)
        prompts = Prompts.from_points(torch.arange(len(images)), places, torch.ones(len(images), 1, dtype=torch.long))
        return model.decode(embeddings, prompts, multimask_output=True).mask_logits.flatten(2)


def mean_iou(actual: torch.Tensor, expected: torch.Tensor) -> float:
    threshold = expected.median(2, keepdim=True).values
    a, b = actual > threshold, expected > threshold
    return float(((a & b).sum(2) / (a | b).sum(2)).mean())


TEACHER = VIT | {"embed_dim": 64, "depth": 3}
STUDENT = VIT | {"embed_dim": 32, "depth": 2, "stem": "conv"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "model.pt"
    save_checkpoint(path, with_random_hypernetworks(build(TEACHER)), TEACHER, {})
    return path


def test_distilled_student_approximates_the_teacher(
    teacher: Path, shards: Path, samples: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = Sam.encode_images

    def counting(self: Sam, images: torch.Tensor, sizes_hw: torch.Tensor) -> torch.Tensor:
        if self.image_encoder.depth == TEACHER["depth"]:
            seen.append(len(images))
        return encode(self, images, sizes_hw)

    monkeypatch.setattr(Sam, "encode_images", counting)
    options = [f"teacher={teacher}", f"embedding_cache={tmp_path / 'embeddings'}", "optim=from_scratch", "optim.lr=3e-3"]
    options += ["optim.warmup_steps=5", "trainer.max_steps=60", f"data.val_shards={shards}", "data.images_per_step=4"]
    metrics = train(shards, tmp_path / "run", STUDENT, *options)
    losses, cosines = log_of(tmp_path / "run", "train/loss"), log_of(tmp_path / "run", "train/cosine")
    assert len(losses) == 60
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])
    assert cosines[-1] > 0.9 > cosines[0]
    assert sum(seen) == len(samples), "from the second epoch on the teacher's embeddings are read from the cache"
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == len(samples)
    assert "val/miou_at_1" in metrics

    monkeypatch.undo()
    student, teacher_model = load_checkpoint(tmp_path / "run" / "model.pt"), load_checkpoint(teacher)
    for part in ("prompt_encoder", "mask_decoder"):
        pairs = zip(getattr(student, part).state_dict().values(), getattr(teacher_model, part).state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    images = [decoded_image(sample, tmp_path) for sample in samples]
    torch.manual_seed(9)
    untrained: Sam = build(STUDENT)
    copy_teacher_decoder(untrained, teacher_model, origin="the test")
    expected = middle_click_logits(teacher_model, images)
    assert mean_iou(middle_click_logits(untrained.eval(), images), expected) < 0.6
    assert mean_iou(middle_click_logits(student, images), expected) > 0.75
    provenance = torch.load(tmp_path / "run" / "model.pt", weights_only=True)["provenance"]
    assert provenance["teacher"] == checkpoint_hash(teacher)


def test_resumed_distillation_ends_as_the_uninterrupted_one(teacher: Path, shards: Path, tmp_path: Path) -> None:
    """The student is MobileSAM's encoder with stochastic depth and trained batch norms."""
    student = MOBILE_SAM | {"drop_path_rate": 0.5, "freeze_batch_norm": False}
    options = [f"teacher={teacher}", f"embedding_cache={tmp_path / 'embeddings'}"]
    train(shards, tmp_path / "uninterrupted", student, *options)
    train_and_kill(3, shards, tmp_path / "resumed", student, *options)
    train(shards, tmp_path / "resumed", student, *options)
    check_same(tmp_path / "resumed", tmp_path / "uninterrupted")
    checkpoint = torch.load(tmp_path / "resumed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(list(build(student).image_encoder.parameters()))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["teacher={teacher}", "model.image_size=128"], ConfigError, "image_size=64, the student 128: set model.image_size=64"),
        (["teacher={teacher}", "model.decoder_heads=4"], ConfigError, "set model.decoder_heads=2"),
        (["teacher={teacher}", "model.decoder_mlp_dim=32"], CheckpointError, "mlp.lin1.weight has shape"),
        (["training.text_alignment_weight=1"], ConfigError, "text_alignment_weight is set"),
        (["teacher={teacher}", "freeze_image_encoder=true"], ConfigError, "freeze_image_encoder=true excludes"),
        (["lora=attention"], ConfigError, "give init_checkpoint="),
        (
            ["lora=attention", "freeze_image_encoder=true", "init_checkpoint={teacher}"],
            ConfigError,
            "freeze_image_encoder=true excludes",
        ),
    ],
)
def test_rejects_options_that_exclude_each_other(
    overrides: list[str], error: type[Exception], message: str, teacher: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(shards, tmp_path / "run", STUDENT, *(value.format(teacher=teacher) for value in overrides))
    assert not (tmp_path / "run").exists()
