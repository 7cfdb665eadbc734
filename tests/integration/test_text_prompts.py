"""End-to-end tests of text prompts: train on crops or names, resume after a kill, predict, evaluate, annotate, export.

The CLIP has random weights, so the tests do not measure mask quality; configs/experiment/text.yaml records that.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tiny_clip import DIM, write_tiny_clip

from data_engine.engine import run_stage as annotate
from sam_train.checkpoint import load_checkpoint
from sam_train.config import config_dir
from sam_train.errors import CheckpointError, ConfigError
from sam_train.evaluate import run as evaluate
from sam_train.evaluation.text_figures import CAPTION_PX
from sam_train.export import run as export
from sam_train.inference import load_predictor
from sam_train.inference.prompt_arrays import make_prompts
from sam_train.records import Provenance
from sam_train.shards import iterate_samples, write_shard
from sam_train.structures import Batch, Prompts
from sam_train.text import ClipEncoder
from sam_train.train import train_model
from sam_train.training import SamModule

STEPS = 4
RUN = [
    *(
        "model=vit_nano",
        "wandb.enabled=false",
        "~callbacks",
        "threads=1",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={STEPS}",
    ),
    *("trainer.log_every_n_steps=1", "+trainer.enable_progress_bar=false", "checkpoint_every_n_steps=2"),
    *("prompts={num_corrections: 1, num_mask_only_rounds: 1}", "data.images_per_step=2"),
]
NAMES = ("round coffee", "square cat")


class KilledError(BaseException):
    """An exception that no handler catches, like SIGKILL."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write four images of two objects each; the objects of the last one have no names."""
    folder, samples = tmp_path_factory.mktemp("shards"), []
    for index in range(1, 5):
        record, jpeg = make_sample(index)
        names = ("", "") if index == 4 else (NAMES[index % 2], f"wavy {'moon' * (index % 3)}")
        source = {"stage": "import", "checkpoint": "", "annotator": "x", "config": ""}
        masks = [replace(m, provenance=Provenance(name=n, **source)) for m, n in zip(record.masks, names, strict=True)]  # type: ignore[arg-type]
        samples.append((replace(record, masks=masks), jpeg))
    write_shard(folder / "sa_000000.tar", samples)
    return folder


def compose_config(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose(root, overrides=list(overrides))


def train(shards: Path, run_dir: Path, *overrides: str) -> dict[str, float]:
    return train_model(
        compose_config("train", *RUN, f"data.shards={shards}", f"data.val_shards={shards}", f"run_dir={run_dir}", *overrides)
    )


def crop_overrides(clip: str) -> list[str]:
    return ["text=clip", f"text.encoder.model={clip}", "text.min_area_px=1"]


def name_overrides(clip: str) -> list[str]:
    return ["text=sentence", "text_encoder@text.encoder=clip", f"text.encoder.model={clip}"]


@pytest.fixture(scope="module")
def trained(shards: Path, clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of an uninterrupted run that trains on crops."""
    run_dir = tmp_path_factory.mktemp("runs") / "words"
    metrics = train(shards, run_dir, *crop_overrides(clip))
    assert 0 <= metrics["val/miou_from_text"] <= 1
    assert 0 <= metrics["val/miou_from_text_and_click"] <= 1
    return run_dir / "model.pt"


def test_checkpoint_stores_its_text_encoder(trained: Path, clip: str) -> None:
    config = torch.load(trained, weights_only=True)["config"]
    assert (config["text_dim"], config["text_encoder"]) == (DIM, ClipEncoder(clip).sha256)
    assert load_checkpoint(trained).prompt_encoder.text_dim == DIM


def test_killed_run_resumes_to_bit_identical_weights(trained: Path, shards: Path, clip: str, tmp_path: Path) -> None:
    step = SamModule.training_step

    def kill_at_third_step(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == 3:
            raise KilledError
        step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "training_step", kill_at_third_step)
        with pytest.raises(KilledError):
            train(shards, tmp_path / "run", *crop_overrides(clip))
    with pytest.raises(ConfigError, match="another text"):
        train(shards, tmp_path / "run", *crop_overrides(clip), "text.num_crops=2")
    train(shards, tmp_path / "run", *crop_overrides(clip))
    weights, expected = (torch.load(path, weights_only=True)["model"] for path in (tmp_path / "run" / "model.pt", trained))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_steps_begin_with_text_prompts_and_drop_masks_without_one(shards: Path, clip: str, tmp_path: Path) -> None:
    steps: list[tuple[Batch, list[Prompts]]] = []
    backward, decode = SamModule.backpropagate, None

    def record_step(self: SamModule, batch: Batch, *rest: Any, **options: Any) -> None:
        decoded: list[Prompts] = []
        decode = self.model.decode

        def record_decode(embeddings: torch.Tensor, prompts: Prompts, **kwargs: Any) -> Any:
            decoded.append(prompts)
            return decode(embeddings, prompts, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.model, "decode", record_decode)
            backward(self, batch, *rest, **options)
        steps.append((batch, decoded))

    assert decode is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "backpropagate", record_step)
        train(shards, tmp_path / "words", *name_overrides(clip), "data.load_names=true")
        train(shards, tmp_path / "clicks", *name_overrides(clip), "data.load_names=true", "prompts.text_probability=0")
    text_steps, click_steps = steps[:STEPS], steps[STEPS:]
    embeddings = {
        name: ClipEncoder(clip, "cpu").embed_texts([name])[0] for name in (*NAMES, "wavy moon", "wavy moonmoon", "wavy ")
    }
    for batch, decoded in text_steps:
        assert batch.names
        assert "" not in batch.names
        assert batch.text_embeddings is not None
        expected = torch.stack([embeddings[name] for name in batch.names])
        assert torch.allclose(batch.text_embeddings, expected, atol=2e-3), "each mask has the embedding of its own name"
        first, second, last = decoded
        assert (first.point_labels == -1).all()
        assert torch.equal(first.text_embeddings, batch.text_embeddings)
        assert second.point_labels.shape[1] == last.point_labels.shape[1] == 2
        assert last.mask_logits is not None
        assert last.text_embeddings is not None
    for _, decoded in click_steps:
        assert all(prompts.text_embeddings is None for prompts in decoded)


def test_loader_processes_yield_the_same_text_prompts(shards: Path, clip: str, tmp_path: Path) -> None:
    losses = []
    for workers in (0, 2):
        overrides = [*name_overrides(clip), f"data.num_workers={workers}"]
        losses.append(train(shards, tmp_path / str(workers), *overrides)["train/loss"])
    assert losses[0] == losses[1]


def test_click_model_is_fine_tuned_on_text_prompts(shards: Path, clip: str, tmp_path: Path) -> None:
    train(shards, tmp_path / "clicks")
    train(
        shards,
        tmp_path / "words",
        *crop_overrides(clip),
        f"init_checkpoint={tmp_path / 'clicks' / 'model.pt'}",
        "trainer.max_steps=1",
    )
    assert load_checkpoint(tmp_path / "clicks" / "model.pt").prompt_encoder.text_dim is None
    assert load_checkpoint(tmp_path / "words" / "model.pt").prompt_encoder.text_dim == DIM


def test_predicts_from_text_alone_and_with_a_click(trained: Path, clip: str) -> None:
    predictor, encoder = load_predictor(str(trained)), ClipEncoder(clip, "cpu")
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    text_embeddings = encoder.embed_texts(["round coffee", "square cat"])
    prediction = predictor.predict_prompts(make_prompts(text_embeddings=text_embeddings), multimask_output=True)
    assert predictor.masks_to_image(prediction.mask_logits).shape == (2, 3, 48, 64)
    first, second = prediction.mask_logits
    assert (first - second).abs().max() > 1e-4, "different texts give different predictions"
    both = make_prompts(text_embeddings=text_embeddings, points_xy=np.array([[3, 4], [5, 6]]))
    assert predictor.predict_prompts(both, multimask_output=False).mask_logits.shape == (2, 1, 32, 32)


def test_evaluates_names_against_a_control_of_other_names(trained: Path, shards: Path, clip: str, tmp_path: Path) -> None:
    options = ["protocol=text", "text_encoder@protocol.encoder=clip", f"protocol.encoder.model={clip}", "threads=1"]
    paraphrases = "protocol.paraphrases={backwards: {reverse: true}, sentence: {template: 'a {name}'}}"
    paths = [f"checkpoint={trained}", f"shards={shards}", f"out={tmp_path / 'words.json'}"]
    measures = evaluate(compose_config("evaluate", *options, *paths, paraphrases, f"protocol.figures={tmp_path / 'figures'}"))
    assert measures["num_text_prompts"] == 6
    figures = [cv2.imread(str(path)) for path in sorted((tmp_path / "figures").iterdir())]
    assert sum(figure.shape[1] // 240 for figure in figures) == 6, "a tile for each name"
    assert all((figure[-CAPTION_PX:] == 255).any() for figure in figures), "with its name below"
    shares = ("miou_by_words", "miou_control", "miou_backwards", "miou_sentence", "miou_by_words_and_click")
    assert all(0 <= measures[name] <= 1 for name in shares)
    assert measures["miou_by_words"] != measures["miou_control"]
    assert json.loads((tmp_path / "words.json").read_bytes())["miou_by_words"] == measures["miou_by_words"]
    cached = [f"result_cache={tmp_path / 'cache'}", *paths, *options, paraphrases]
    for part in ("0/2", "1/2"):
        evaluate(compose_config("evaluate", *cached, f"slice={part}"))
    assert evaluate(compose_config("evaluate", *cached)) == measures, "a run in slices draws the same control"


def test_evaluation_rejects_another_text_encoder(trained: Path, shards: Path, tmp_path: Path) -> None:
    other = write_tiny_clip(tmp_path / "clip", seed=1)
    options = ["protocol=text", "text_encoder@protocol.encoder=clip", f"protocol.encoder.model={other}"]
    with pytest.raises(ConfigError, match="are not compatible"):
        evaluate(compose_config("evaluate", *options, f"checkpoint={trained}", f"shards={shards}"))


def test_engine_annotates_from_a_list_of_text_prompts(trained: Path, shards: Path, clip: str, tmp_path: Path) -> None:
    generator = [
        "generator@stage.generator=text_prompts",
        "text_encoder@stage.generator.encoder=clip",
        "stage.generator.text_prompts=[cat,red car]",
    ]
    no_filters = [
        f"stage.generator.encoder.model={clip}",
        "stage.generator.pred_iou_thresh=-9",
        "stage.generator.stability_score_thresh=-1",
    ]
    paths = [f"source={shards}", f"checkpoint={trained}", f"out={tmp_path}", "privacy=none", "report=false", "threads=1"]
    annotate(compose_config("engine", *generator, *no_filters, *paths))
    records = [sample.record for sample in iterate_samples(sorted(tmp_path.glob("*.tar")))]
    assert len(records) == 4
    names = {mask.name for record in records for mask in record.masks}
    assert names
    assert names <= {"cat", "red car"}
    assert all(mask.provenance and mask.provenance.stage == "fully_automatic" for record in records for mask in record.masks)


def test_exported_decoder_takes_text_if_the_model_does(trained: Path, shards: Path, tmp_path: Path) -> None:
    export(
        compose_config("export", f"checkpoint={trained}", f"out={tmp_path / 'onnx'}", "options.text_input=true", "encoder=false")
    )
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "decoder.onnx", providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} >= {"text_embeddings", "point_coords", "image_embeddings"}
    with pytest.raises(CheckpointError, match="could not be read back"):  # no released model has its stem
        export(compose_config("export", f"checkpoint={trained}", f"out={tmp_path / 'pth'}", "format=pth"))
    assert not (tmp_path / "pth" / "model.pth").exists()
    train(shards, tmp_path / "clicks", "trainer.max_steps=1")
    cfg = compose_config(
        "export", f"checkpoint={tmp_path / 'clicks' / 'model.pt'}", f"out={tmp_path / 'no'}", "options.text_input=true"
    )
    with pytest.raises(ConfigError, match="needs a model that takes text prompts"):
        export(cfg)
