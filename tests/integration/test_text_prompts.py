"""Words from end to end, as a user goes: train by crops or by names, be killed and go on, ask by words, measure, export.

The CLIP has random weights, so nothing here is about how good the masks are; configs/experiment/text.yaml says that.
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
from sam_train.errors import ConfigError
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
    *("prompts={num_corrections: 1, num_empty_rounds: 1}", "data.images_per_step=2"),
]
NAMES = ("round coffee", "square cat")


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of two objects, the last without a name."""
    folder, samples = tmp_path_factory.mktemp("shards"), []
    for index in range(1, 5):
        record, jpeg = make_sample(index)
        names = ("", "") if index == 4 else (NAMES[index % 2], f"wavy {'moon' * (index % 3)}")
        made = {"stage": "import", "checkpoint": "", "annotator": "x", "config": ""}
        masks = [replace(m, provenance=Provenance(name=n, **made)) for m, n in zip(record.masks, names, strict=True)]  # type: ignore[arg-type]
        samples.append((replace(record, masks=masks), jpeg))
    write_shard(folder / "sa_000000.tar", samples)
    return folder


def composed(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose(root, overrides=list(overrides))


def train(shards: Path, run_dir: Path, *overrides: str) -> dict[str, float]:
    return train_model(
        composed("train", *RUN, f"data.shards={shards}", f"data.val_shards={shards}", f"run_dir={run_dir}", *overrides)
    )


def by_crops(clip: str) -> list[str]:
    return ["text=clip", f"text.encoder.model={clip}", "text.min_area_px=1"]


def by_names(clip: str) -> list[str]:
    return ["text=sentence", "text_encoder@text.encoder=clip", f"text.encoder.model={clip}"]


@pytest.fixture(scope="module")
def trained(shards: Path, clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run by crops that nobody interrupted."""
    run_dir = tmp_path_factory.mktemp("runs") / "words"
    metrics = train(shards, run_dir, *by_crops(clip))
    assert 0 <= metrics["val/miou_from_text"] <= 1
    assert 0 <= metrics["val/miou_from_text_and_click"] <= 1
    return run_dir / "model.pt"


def test_the_checkpoint_knows_its_encoder(trained: Path, clip: str) -> None:
    config = torch.load(trained, weights_only=True)["config"]
    assert (config["text_dim"], config["text_encoder"]) == (DIM, ClipEncoder(clip).sha256)
    assert load_checkpoint(trained).prompt_encoder.text_dim == DIM


def test_a_killed_run_ends_with_the_same_bits(trained: Path, shards: Path, clip: str, tmp_path: Path) -> None:
    step = SamModule.training_step

    def until_the_third(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == 3:
            raise KilledError
        step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "training_step", until_the_third)
        with pytest.raises(KilledError):
            train(shards, tmp_path / "run", *by_crops(clip))
    with pytest.raises(ConfigError, match="another text"):
        train(shards, tmp_path / "run", *by_crops(clip), "text.num_crops=2")
    train(shards, tmp_path / "run", *by_crops(clip))
    weights, expected = (torch.load(path, weights_only=True)["model"] for path in (tmp_path / "run" / "model.pt", trained))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_steps_begin_with_words_and_only_masks_with_words_are_there(shards: Path, clip: str, tmp_path: Path) -> None:
    seen: list[tuple[Batch, list[Prompts]]] = []
    backward, decode = SamModule.backpropagate, None

    def watched(self: SamModule, batch: Batch, *rest: Any, **options: Any) -> None:
        asked: list[Prompts] = []
        decode = self.model.decode

        def noting(embeddings: torch.Tensor, prompts: Prompts, **kwargs: Any) -> Any:
            asked.append(prompts)
            return decode(embeddings, prompts, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.model, "decode", noting)
            backward(self, batch, *rest, **options)
        seen.append((batch, asked))

    assert decode is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "backpropagate", watched)
        train(shards, tmp_path / "words", *by_names(clip), "data.load_names=true")
        train(shards, tmp_path / "clicks", *by_names(clip), "data.load_names=true", "prompts.text_probability=0")
    by_words, by_clicks = seen[:STEPS], seen[STEPS:]
    known = {name: ClipEncoder(clip, "cpu").embed_texts([name])[0] for name in (*NAMES, "wavy moon", "wavy moonmoon", "wavy ")}
    for batch, asked in by_words:
        assert batch.names
        assert "" not in batch.names
        assert batch.text_embeddings is not None
        expected = torch.stack([known[name] for name in batch.names])
        assert torch.allclose(batch.text_embeddings, expected, atol=2e-3), "each mask has the words of its own name"
        first, second, last = asked
        assert (first.point_labels == -1).all()
        assert torch.equal(first.text_embeddings, batch.text_embeddings)
        assert second.point_labels.shape[1] == last.point_labels.shape[1] == 2
        assert last.mask_logits is not None
        assert last.text_embeddings is not None
    for _, asked in by_clicks:
        assert all(prompts.text_embeddings is None for prompts in asked)


def test_loader_processes_bring_the_same_words(shards: Path, clip: str, tmp_path: Path) -> None:
    trained = [
        train(shards, tmp_path / str(workers), *by_names(clip), f"data.num_workers={workers}")["train/loss"] for workers in (0, 2)
    ]
    assert trained[0] == trained[1]


def test_a_click_model_learns_words(shards: Path, clip: str, tmp_path: Path) -> None:
    train(shards, tmp_path / "clicks")
    train(
        shards, tmp_path / "words", *by_crops(clip), f"init_checkpoint={tmp_path / 'clicks' / 'model.pt'}", "trainer.max_steps=1"
    )
    assert load_checkpoint(tmp_path / "clicks" / "model.pt").prompt_encoder.text_dim is None
    assert load_checkpoint(tmp_path / "words" / "model.pt").prompt_encoder.text_dim == DIM


def test_masks_by_words_alone_and_with_a_click(trained: Path, clip: str) -> None:
    predictor, encoder = load_predictor(str(trained)), ClipEncoder(clip, "cpu")
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    words = encoder.embed_texts(["round coffee", "square cat"])
    by_words = predictor.predict(make_prompts(text_embeddings=words), multimask_output=True)
    assert predictor.masks_to_image(by_words.mask_logits).shape == (2, 3, 48, 64)
    assert (by_words.mask_logits[0] - by_words.mask_logits[1]).abs().max() > 1e-4, "other words, another answer"
    both = make_prompts(text_embeddings=words, points_xy=np.array([[3, 4], [5, 6]]))
    assert predictor.predict(both, multimask_output=False).mask_logits.shape == (2, 1, 32, 32)


def test_words_are_measured_against_other_words(trained: Path, shards: Path, clip: str, tmp_path: Path) -> None:
    asked = ["protocol=text", "text_encoder@protocol.encoder=clip", f"protocol.encoder.model={clip}", "threads=1"]
    wordings = "protocol.wordings={backwards: {backwards: true}, picture: {template: 'a {name}'}}"
    places = [f"checkpoint={trained}", f"shards={shards}", f"out={tmp_path / 'words.json'}"]
    measures = evaluate(composed("evaluate", *asked, *places, wordings, f"protocol.pictures={tmp_path / 'pictures'}"))
    assert measures["num_asked"] == 6
    pictures = [cv2.imread(str(path)) for path in sorted((tmp_path / "pictures").iterdir())]
    assert sum(picture.shape[1] // 240 for picture in pictures) == 6, "a tile for each name"
    assert all((picture[-CAPTION_PX:] == 255).any() for picture in pictures), "with its name below"
    shares = ("miou_by_words", "miou_control", "miou_backwards", "miou_picture", "miou_by_words_and_click")
    assert all(0 <= measures[name] <= 1 for name in shares)
    assert measures["miou_by_words"] != measures["miou_control"]
    assert json.loads((tmp_path / "words.json").read_bytes())["miou_by_words"] == measures["miou_by_words"]
    journal = [f"journal={tmp_path / 'journal'}", *places, *asked, wordings]
    for part in ("0/2", "1/2"):
        evaluate(composed("evaluate", *journal, f"slice={part}"))
    assert evaluate(composed("evaluate", *journal)) == measures, "a run in slices draws the same control"


def test_another_encoder_is_refused(trained: Path, shards: Path, tmp_path: Path) -> None:
    other = write_tiny_clip(tmp_path / "clip", seed=1)
    asked = ["protocol=text", "text_encoder@protocol.encoder=clip", f"protocol.encoder.model={other}"]
    with pytest.raises(ConfigError, match="are not compatible"):
        evaluate(composed("evaluate", *asked, f"checkpoint={trained}", f"shards={shards}"))


def test_the_engine_asks_by_a_list_of_words(trained: Path, shards: Path, clip: str, tmp_path: Path) -> None:
    by_words = [
        "generator@stage.generator=text_prompts",
        "text_encoder@stage.generator.encoder=clip",
        "stage.generator.text_prompts=[cat,red car]",
    ]
    anything = [
        f"stage.generator.encoder.model={clip}",
        "stage.generator.pred_iou_thresh=-9",
        "stage.generator.stability_score_thresh=-1",
    ]
    places = [f"source={shards}", f"checkpoint={trained}", f"out={tmp_path}", "privacy=none", "report=false", "threads=1"]
    annotate(composed("engine", *by_words, *anything, *places))
    records = [sample.record for sample in iterate_samples(sorted(tmp_path.glob("*.tar")))]
    assert len(records) == 4
    names = {mask.name for record in records for mask in record.masks}
    assert names
    assert names <= {"cat", "red car"}
    assert all(mask.provenance and mask.provenance.stage == "fully_automatic" for record in records for mask in record.masks)


def test_exported_decoders_take_words_or_leave_them(trained: Path, shards: Path, tmp_path: Path) -> None:
    export(composed("export", f"checkpoint={trained}", f"out={tmp_path / 'onnx'}", "options.text_input=true", "encoder=false"))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "decoder.onnx", providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} >= {"text_embeddings", "point_coords", "image_embeddings"}
    export(composed("export", f"checkpoint={trained}", f"out={tmp_path / 'pth'}", "format=pth"))
    assert not [name for name in torch.load(tmp_path / "pth" / "model.pth", weights_only=True) if "text" in name]
    train(shards, tmp_path / "clicks", "trainer.max_steps=1")
    cfg = composed(
        "export", f"checkpoint={tmp_path / 'clicks' / 'model.pt'}", f"out={tmp_path / 'no'}", "options.text_input=true"
    )
    with pytest.raises(ConfigError, match="wants a model that takes words"):
        export(cfg)
