"""An ONNX file computes the model's outputs, has the released signature, and is not written if it differs from torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_dir

from sam_train.checkpoint import checkpoint_hash, load_checkpoint, save_checkpoint
from sam_train.config import config_dir
from sam_train.errors import CheckpointError, ConfigError
from sam_train.export import run
from sam_train.inference.export import ExportOptions, decoder_model, export_onnx, parity
from sam_train.inference.export.parity import open_session, random_inputs, torch_outputs
from sam_train.model import Sam
from sam_train.model.build import build_sam

NUMBERS: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 3,
    "prompt_dim": 32,
    "decoder_mlp_dim": 64,
    "decoder_heads": 2,
    "decoder_depth": 3,
}


@pytest.fixture
def model() -> Sam:
    """Return a model with weights large enough for masks of both signs."""
    sam = build_sam(**NUMBERS).eval()
    for parameter in sam.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return sam


@pytest.mark.parametrize("single", [False, True])
def test_exports_scores_with_sigmoid(tmp_path: Path, single: bool) -> None:
    sam = build_sam(**NUMBERS | {"iou_sigmoid": True}).eval()
    torch.nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 3.0)  # type: ignore[arg-type]
    (file,) = export_onnx(sam, tmp_path / "out", options=ExportOptions(return_single_mask=single), encoder=False)
    assert file.parity.score_difference < 1e-5
    scores = open_session(tmp_path / "out" / "decoder.onnx").run(["iou_predictions"], next(random_inputs(sam)))[0]
    assert scores == pytest.approx(1 / (1 + np.exp(-3)), abs=0.02)


@pytest.mark.parametrize(("single", "sigmoid"), [(False, False), (True, False), (False, True)])
def test_exports_scores_from_masks(tmp_path: Path, single: bool, sigmoid: bool) -> None:
    sam = build_sam(**NUMBERS | {"iou_from_masks": True, "iou_sigmoid": sigmoid}).eval()
    for parameter in sam.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    (file,) = export_onnx(sam, tmp_path / "out", options=ExportOptions(return_single_mask=single), encoder=False)
    assert file.parity.score_difference < 1e-5
    assert file.parity.mask_difference < 1e-5
    case, session = next(random_inputs(sam)), open_session(tmp_path / "out" / "decoder.onnx")
    (scores,) = session.run(["iou_predictions"], case)
    sam.mask_decoder.mask_statistics_head = None
    (without,) = export_onnx(sam, tmp_path / "without", options=ExportOptions(return_single_mask=single), encoder=False)
    (other,) = open_session(without.path).run(["iou_predictions"], case)
    assert np.abs(scores - other).max() > 1e-3


@pytest.mark.parametrize("single", [False, True])
def test_details_reach_the_masks(tmp_path: Path, single: bool) -> None:
    """An encoder that shows the decoder what its convolutions saw: four times the channels, and they matter."""
    sam = build_sam(**NUMBERS | {"stem": "conv", "high_res_features": True}).eval()
    (file,) = export_onnx(sam, tmp_path / "out", options=ExportOptions(return_single_mask=single), encoder=False)
    assert file.parity.mask_difference < 1e-5
    case, session = next(random_inputs(sam)), open_session(tmp_path / "out" / "decoder.onnx")
    assert case["image_embeddings"].shape == (1, 4 * 32, 8, 8)
    for channels in (slice(0, 32), slice(32, 64), slice(64, 128)):
        less = case["image_embeddings"].copy()
        less[:, channels] = 0
        answers = [session.run(["low_res_masks"], case | {"image_embeddings": e})[0] for e in (case["image_embeddings"], less)]
        assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_exports_normalisation_by_image_statistics(tmp_path: Path) -> None:
    sam = build_sam(**NUMBERS | {"pixel_statistics": "image"}).eval()
    _, encoder = export_onnx(sam, tmp_path / "out", options=ExportOptions())
    assert encoder.path.name == "encoder.onnx"
    assert encoder.parity.mask_difference < 1e-5


@pytest.fixture
def checkpoint(model: Sam, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, {"_target_": "sam_train.model.build.build_sam", **NUMBERS}, {})
    return path


def export(checkpoint: Path, *overrides: str) -> list[Path]:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return run(compose("export", [f"checkpoint={checkpoint}", f"out={checkpoint.parent / 'out'}", *overrides]))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("stability", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_every_option_agrees_with_torch(model: Sam, tmp_path: Path, single: bool, stability: bool, extra: bool) -> None:
    options = ExportOptions(return_single_mask=single, use_stability_score=stability, return_extra_metrics=extra)
    (file,) = export_onnx(model, tmp_path / "out", options=options, encoder=False)
    assert 0 < file.parity.mask_difference < 1e-5
    assert file.parity.score_difference < 1e-5
    assert file.parity.differing_pixels <= 2
    assert file.parity.num_pixels > 12 * 64 * 42


def test_signature_equals_the_released_one(model: Sam) -> None:
    graph = decoder_model(model, ExportOptions(return_extra_metrics=True)).graph
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]}
    assert dims == {
        "image_embeddings": [1, 32, 8, 8],
        "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"],
        "mask_input": [1, 1, 32, 32],
        "has_mask_input": [1],
        "orig_im_size": [2],
        "masks": [1, 4, "height", "width"],
        "iou_predictions": [1, 4],
        "stability_scores": [1, 4],
        "areas": [1, 4],
        "low_res_masks": [1, 4, 32, 32],
    }
    assert [v.name for v in graph.output] == ["masks", "iou_predictions", "stability_scores", "areas", "low_res_masks"]
    low = decoder_model(model, ExportOptions(return_single_mask=True), full_size=False).graph
    assert [v.name for v in low.output] == ["iou_predictions", "low_res_masks"]


def test_random_inputs_depend_on_prompts_and_masks(model: Sam) -> None:
    """A parity check on inputs without effect would pass for any graph."""
    inputs = list(random_inputs(model))
    assert sorted({case["point_coords"].shape[1] for case in inputs}) == [2, 3, 4, 5, 6]
    assert {float(label) for case in inputs for label in case["point_labels"].flat} == {-1, 0, 1, 2, 3}
    case = inputs[3] | {"has_mask_input": np.ones(1, np.float32)}
    moved = case | {"point_coords": case["point_coords"] + 9}
    without = case | {"has_mask_input": np.zeros(1, np.float32)}
    answers = [torch_outputs(model, ExportOptions(), c)["low_res_masks"] for c in (case, moved, without)]
    assert min(float((answers[0] - other).abs().max()) for other in answers[1:]) > 1e-2


def test_one_click_selects_among_three_masks_and_two_clicks_mask_0(model: Sam, tmp_path: Path) -> None:
    export_onnx(model, tmp_path / "all", options=ExportOptions(), encoder=False)
    export_onnx(model, tmp_path / "one", options=ExportOptions(return_single_mask=True), encoder=False)
    every, single = open_session(tmp_path / "all" / "decoder.onnx"), open_session(tmp_path / "one" / "decoder.onnx")
    seen = set()
    for case in random_inputs(model):
        _, scores, low = every.run(None, case)
        best = 0 if case["point_labels"].shape[1] > 2 else 1 + int(scores[0, 1:].argmax())
        _, score, mask = single.run(None, case)
        assert np.allclose(score, scores[:, best : best + 1], atol=1e-5)
        assert np.allclose(mask, low[:, best : best + 1], atol=1e-4)
        seen.add(best > 0)
    assert seen == {False, True}


def test_writes_no_file_that_differs_from_torch(model: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parity.torch_outputs
    monkeypatch.setattr(parity, "torch_outputs", lambda *given: {k: v + 1e-2 for k, v in right(*given).items()})
    with pytest.raises(CheckpointError, match=r"decoder.onnx differs from torch by 0.0\d+ of .* Nothing was written"):
        export_onnx(model, tmp_path / "out", options=ExportOptions(), encoder=False)
    assert list(tmp_path.iterdir()) == []


def test_exports_half_and_quantised_decoders(model: Sam, tmp_path: Path) -> None:
    wide = build_sam(**NUMBERS | {"prompt_dim": 64, "decoder_mlp_dim": 512}).eval()
    found = export_onnx(wide, tmp_path / "out", options=ExportOptions(), precisions=["fp32", "fp16", "uint8"], encoder=False)
    fp32, fp16, uint8 = (file.path.stat().st_size for file in found)
    assert [file.path.name for file in found] == ["decoder.onnx", "decoder_fp16.onnx", "decoder_uint8.onnx"]
    assert fp16 < 0.75 * fp32
    assert uint8 < 0.75 * fp32
    assert found[0].parity.mask_difference < found[1].parity.mask_difference < 5e-2
    with pytest.raises(ConfigError, match="precisions must be a list of fp32, fp16, uint8, got"):
        export_onnx(model, tmp_path / "out", options=ExportOptions(), precisions=["int4"])


@pytest.mark.slow
def test_command_writes_encoder_and_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Together they are the model, details and all: pixels and a click in, the mask of torch out."""
    checkpoint, numbers = tmp_path / "model.pt", NUMBERS | {"stem": "conv", "high_res_features": True}
    save_checkpoint(checkpoint, build_sam(**numbers), {"_target_": "sam_train.model.build.build_sam", **numbers}, {})
    paths = export(checkpoint, "options.return_single_mask=true")
    folder = checkpoint.parent / "out"
    assert sorted(paths) == sorted(folder.iterdir()) == [folder / "decoder.onnx", folder / "encoder.onnx"]
    printed = capsys.readouterr().out
    assert "decoder.onnx" in printed
    assert " of 185856" not in printed  # one mask, not four
    assert " of 46464" in printed
    for name in ("encoder.onnx", "decoder.onnx"):
        model = onnx.load(folder / name)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata == {"checkpoint_sha256": checkpoint_hash(checkpoint), "image_size": "64", "precision": "fp32"}
        assert (model.ir_version, [(opset.domain, opset.version) for opset in model.opset_import]) == (10, [("", 18)])
    sam, image = load_checkpoint(checkpoint), torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    size_hw = torch.tensor([[64, 48]])
    (embeddings,) = open_session(folder / "encoder.onnx").run(None, {"image": image.numpy(), "size_hw": size_hw.numpy()})
    case = next(random_inputs(sam)) | {"image_embeddings": embeddings}
    with torch.no_grad():
        expected = torch_outputs(
            sam, ExportOptions(return_single_mask=True), case | {"image_embeddings": sam.encode_images(image, size_hw).numpy()}
        )
    masks, scores, _ = open_session(folder / "decoder.onnx").run(None, case)
    assert np.allclose(masks, expected["masks"].numpy(), atol=1e-3)
    assert np.allclose(scores, expected["iou_predictions"].numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "name"), [("pt", "model.pt"), ("safetensors", "model.safetensors"), ("huggingface", "huggingface")]
)
def test_weights_for_other_programs(checkpoint: Path, kind: str, name: str) -> None:
    (path,) = export(checkpoint, f"format={kind}")
    assert path == checkpoint.parent / "out" / name
    assert torch.equal(
        load_checkpoint(path).mask_decoder.iou_token.weight, load_checkpoint(checkpoint).mask_decoder.iou_token.weight
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, r"predicts otherwise than the model"),  # other decoder heads than the released 8, which no shape tells
        ({"decoder_heads": 8, "stem": "conv"}, r"could not be read back \(.*of an unknown model"),
        ({"decoder_heads": 8, "use_rel_pos": False}, r"could not be read back \(.*lacks image_encoder\.blocks"),
    ],
)
def test_pth_is_not_written_for_a_model_that_it_cannot_hold(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    numbers = NUMBERS | changes
    save_checkpoint(tmp_path / "model.pt", build_sam(**numbers), {"_target_": "sam_train.model.build.build_sam", **numbers}, {})
    with pytest.raises(CheckpointError, match=rf"model\.pth.*{reason}.*use format=safetensors or format=pt"):
        export(tmp_path / "model.pt", "format=pth")
    assert list((tmp_path / "out").iterdir()) == []
    (path,) = export(tmp_path / "model.pt", "format=safetensors")
    assert torch.equal(
        load_checkpoint(path).mask_decoder.iou_token.weight, load_checkpoint(tmp_path / "model.pt").mask_decoder.iou_token.weight
    )


def test_rejects_missing_and_unknown_arguments(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="needs checkpoint=FILE and out=FOLDER"):
        export(checkpoint, "out=null")
    with pytest.raises(ConfigError, match="format must be one of onnx, pt, pth, safetensors, huggingface, got 'tflite'"):
        export(checkpoint, "format=tflite")


@pytest.mark.slow
def test_real_weights(shared_dir: Path, tmp_path: Path) -> None:
    """MobileSAM has a trained decoder of the released shape."""
    sam = load_checkpoint(shared_dir / "weights" / "mobile_sam" / "mobile_sam.pth")
    (file,) = export_onnx(sam, tmp_path / "out", options=ExportOptions(return_single_mask=True), encoder=False)
    assert file.parity.mask_difference < 1e-4
    assert file.parity.differing_pixels < 1e-6 * file.parity.num_pixels
