"""Our `Sam` is `transformers.SamModel`: weights go both ways by files, and the numbers stay.

Answers agree within 1e-4 of their largest value. Two habits of theirs are not compared: prompts of unequal length are
filled up with points of label -10, whose zero tokens are attended to as any other; and the norms of their decoder have eps 1e-6
unless the config says otherwise, where segment-anything, our models and the folders that we write have 1e-5. That alone
moves logits by 2e-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_train.checkpoint import export_weights, load_checkpoint
from sam_train.model import Sam
from sam_train.model.build import build_sam
from sam_train.structures import Prompts

SIZE = 64
NUMBERS: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "global_attn_indexes": [1], "window_size": 3}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs transformers: pip install '.[dev]'")


def shaken(model: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.fixture(scope="module", params=["ours to theirs", "theirs to ours"])
def pair(request: pytest.FixtureRequest, transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Sam]:
    """Theirs and ours with the same random weights, which went by a folder on the disk."""
    folder: Path = tmp_path_factory.mktemp("weights") / "sam"
    if request.param == "ours to theirs":
        ours = shaken(build_sam(image_size=SIZE, **NUMBERS))
        export_weights(ours, folder)
        theirs, report = transformers.SamModel.from_pretrained(folder, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    else:
        theirs = shaken(random_model_of_theirs(transformers))
        theirs.save_pretrained(folder)
        ours = load_checkpoint(folder)
    return theirs.eval(), ours


def random_model_of_theirs(transformers: Any) -> Any:
    vision = transformers.SamVisionConfig(
        hidden_size=NUMBERS["embed_dim"],
        num_hidden_layers=NUMBERS["depth"],
        num_attention_heads=NUMBERS["num_heads"],
        global_attn_indexes=NUMBERS["global_attn_indexes"],
        window_size=NUMBERS["window_size"],
        image_size=SIZE,
    )
    prompt = transformers.SamPromptEncoderConfig(image_size=SIZE)
    decoder = transformers.SamMaskDecoderConfig(layer_norm_eps=1e-5)
    return transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def encoded(ours: Sam, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return ours.encode_images(pixels, torch.tensor([[SIZE, SIZE]] * len(pixels)))


def test_image_embeddings(pair: tuple[Any, Sam], pixels: Tensor) -> None:
    theirs, ours = pair
    expected = theirs.get_image_embeddings((pixels - ours.pixel_mean) / ours.pixel_std)
    assert close(encoded(ours, pixels), expected)


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("kind", ["point", "three points", "box", "box and two points"])
def test_masks_and_scores(pair: tuple[Any, Sam], pixels: Tensor, kind: str, multimask_output: bool) -> None:
    """Two prompts on each of two images; they take images x prompts x points, we a packed list."""
    theirs, ours = pair
    num_points = {"point": 1, "three points": 3, "box": 0, "box and two points": 2}[kind]
    points, labels = torch.rand(4, num_points, 2) * SIZE, torch.randint(0, 2, (4, num_points))
    boxes = torch.rand(4, 2, 2).sort(1).values.flatten(1) * SIZE
    image_index, has_box = torch.tensor([0, 0, 1, 1]), kind.startswith("box")
    prompts = Prompts.from_boxes(image_index, boxes) if has_box else Prompts.from_points(image_index, points, labels)
    for p in range(num_points if has_box else 0):
        prompts = prompts.with_point(points[:, p], labels[:, p], None)
    embeddings = encoded(ours, pixels)
    with torch.no_grad():
        answer = ours.decode(embeddings, prompts, multimask_output=multimask_output)
        expected = theirs(
            image_embeddings=embeddings,
            input_points=points.unflatten(0, (2, 2)) if num_points else None,
            input_labels=labels.unflatten(0, (2, 2)) if num_points else None,
            input_boxes=boxes.unflatten(0, (2, 2)) if has_box else None,
            multimask_output=multimask_output,
        )
    assert close(answer.mask_logits, expected.pred_masks.flatten(0, 1))
    assert close(answer.iou_scores, expected.iou_scores.flatten(0, 1))


def test_a_mask_fed_back(pair: tuple[Any, Sam], pixels: Tensor) -> None:
    theirs, ours = pair
    embeddings, mask = encoded(ours, pixels[:1]), torch.randn(1, 1, SIZE // 4, SIZE // 4) * 5
    points, labels = torch.tensor([[[20.0, 33.0]]]), torch.tensor([[1]])
    with torch.no_grad():
        prompts = Prompts.from_points(torch.zeros(1, dtype=torch.long), points, labels).with_mask(mask)
        answer = ours.decode(embeddings, prompts, multimask_output=False)
        expected = theirs(
            image_embeddings=embeddings,
            input_points=points[None],
            input_labels=labels[None],
            input_masks=mask,
            multimask_output=False,
        )
    assert close(answer.mask_logits, expected.pred_masks[0])
    assert close(answer.iou_scores, expected.iou_scores[0])


def test_their_processor_reads_our_folder(transformers: Any, tmp_path: Path) -> None:
    """The frame: longest side to the model's own size, then padding."""
    export_weights(build_sam(image_size=SIZE, **NUMBERS), tmp_path)
    processor = transformers.SamProcessor.from_pretrained(tmp_path)
    image = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8).numpy()
    inputs = processor(images=image, input_points=[[[10, 20]]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIZE, SIZE)
    assert inputs["reshaped_input_sizes"].tolist() == [[48, 64]]
    assert inputs["input_points"].flatten().tolist() == [16, 32]
