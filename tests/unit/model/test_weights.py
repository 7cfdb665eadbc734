"""Import and export of released weights: the model is inferred from names and shapes; mismatches are named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.checkpoint import checkpoint_hash, export_weights, initialize_from_checkpoint, load_checkpoint, save_checkpoint
from sam_train.config import build, config_dir, to_plain
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import file_sha256
from sam_train.inference import load_predictor
from sam_train.model import Sam, huggingface
from sam_train.model.build import build_mobile_sam, build_sam
from sam_train.model.mae import resize_patch_kernel, resize_position_embeddings
from sam_train.model.weights import infer_config
from sam_train.training.factory import load_initial_weights

VIT: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "global_attn_indexes": [1],
    "window_size": 3,
    "prompt_dim": 32,
    "decoder_mlp_dim": 16,
    "decoder_depth": 1,
}
TINY_VIT: dict[str, Any] = {
    "embed_dims": [8, 8, 16, 16],
    "depths": [1, 1, 2, 1],
    "num_heads": [2, 2, 2, 4],
    "window_sizes": [7, 3, 5, 2],
    "prompt_dim": 16,
    "decoder_mlp_dim": 16,
}


@pytest.fixture
def model() -> Sam:
    return shaken(build_sam(**VIT))


def shaken(model: Sam) -> Sam:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", ["sam.pth", "huggingface"])
def test_export_rejects_models_that_others_cannot_represent(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="applies a sigmoid"):
        export_weights(build_sam(**VIT, iou_sigmoid=True), tmp_path / name)
    with pytest.raises(CheckpointError, match="from statistics of the masks"):
        export_weights(build_sam(**VIT, iou_from_masks=True), tmp_path / name)
    with pytest.raises(CheckpointError, match="each image's own mean"):
        export_weights(build_sam(**VIT, pixel_statistics="image"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("theirs", "ours"), [("image", "released"), ("released", "image")])
def test_rejects_weights_of_other_pixel_statistics(model: Sam, theirs: str, ours: str, tmp_path: Path) -> None:
    config = {"_target_": "sam_train.model.build.build_sam", **VIT} | ({"pixel_statistics": theirs} if theirs == "image" else {})
    save_checkpoint(tmp_path / "model.pt", model, config, {})
    with pytest.raises(
        CheckpointError, match=f"pixel_statistics={theirs}, but this model has {ours}; set model.pixel_statistics="
    ):
        initialize_from_checkpoint(build_sam(**VIT, pixel_statistics=ours), tmp_path / "model.pt")
    initialize_from_checkpoint(build_sam(**VIT, pixel_statistics=theirs), tmp_path / "model.pt")


def test_the_mask_statistics_head_is_added_to_weights_without_it(model: Sam, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", model, {"_target_": "sam_train.model.build.build_sam", **VIT}, {})
    larger = build_sam(**VIT, iou_from_masks=True)
    head = {name: tensor.clone() for name, tensor in larger.state_dict().items() if "mask_statistics_head" in name}
    said = initialize_from_checkpoint(larger, tmp_path / "model.pt")
    assert said.endswith("tensors loaded, mask statistics head initialized randomly")
    assert same(larger.state_dict() | model.state_dict(), larger.state_dict())
    assert all(torch.equal(larger.state_dict()[name], tensor) for name, tensor in head.items())
    config = {"_target_": "sam_train.model.build.build_sam", **VIT, "iou_from_masks": True}
    save_checkpoint(tmp_path / "larger.pt", larger, config, {})
    with pytest.raises(CheckpointError, match=r"unexpected mask_decoder.*set \+model.iou_from_masks=true"):
        initialize_from_checkpoint(model, tmp_path / "larger.pt")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h", "mobile_sam"])
def test_the_config_is_read_off_the_shapes(variant: str) -> None:
    """Use the released depths, heads, windows and image size, and a narrow ViT to keep the test fast."""
    config = to_plain(OmegaConf.load(Path(config_dir()) / "model" / f"{variant}.yaml")) | {"decoder_mlp_dim": 16}
    if "embed_dim" in config:
        config |= {"embed_dim": 2 * config["num_heads"], "prompt_dim": 32}
    found = infer_config(build(config).state_dict(), origin="file")
    for unseen in ("drop_path_rate", "decoder_dropout"):
        config.pop(unseen, None)
    assert found == config | {"decoder_depth": 2, "decoder_heads": 8}


@pytest.mark.parametrize(
    ("variant", "parameters", "tensors"),
    [("vit_b", 93_735_472, 314), ("vit_l", 312_342_832, 482), ("vit_h", 641_090_608, 594), ("mobile_sam", 9_808_452, 435)],
)
def test_the_configs_are_the_released_variants(variant: str, parameters: int, tensors: int) -> None:
    """Sizes of segment-anything's own models; nothing is allocated."""
    with torch.device("meta"):
        model = build(OmegaConf.load(Path(config_dir()) / "model" / f"{variant}.yaml"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


def test_rejects_blocks_of_several_window_sizes(model: Sam) -> None:
    state = dict(model.state_dict())
    state["image_encoder.blocks.2.attn.rel_pos_h"] = torch.zeros(3, 8)
    with pytest.raises(CheckpointError, match=r"^file: its blocks have windows of \[2, 3\] tokens on a grid of 4"):
        infer_config(state, origin="file")


@pytest.mark.parametrize("name", ["released.pth", "released"])
def test_a_released_vit_round_trip(model: Sam, name: str, tmp_path: Path) -> None:
    export_weights(model, tmp_path / name)
    loaded = load_checkpoint(tmp_path / name)
    assert not loaded.training
    assert same(loaded.state_dict(), model.state_dict())  # type: ignore[arg-type]
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 48]])
    assert torch.equal(loaded.encode_images(images, sizes), model.eval().encode_images(images, sizes))


def test_a_mobile_sam_round_trip(tmp_path: Path) -> None:
    model = shaken(build_mobile_sam(**TINY_VIT))
    export_weights(model, tmp_path / "released.pth")
    loaded = load_checkpoint(tmp_path / "released.pth")
    assert same(loaded.state_dict(), model.state_dict())  # type: ignore[arg-type]
    assert [block.window_size for block in loaded.image_encoder.blocks[1:]] == [3, 5, 5, 2]  # type: ignore[union-attr]


def test_a_bare_file_of_metas_names(model: Sam, tmp_path: Path) -> None:
    """Cover tensors that forks add and the containers in which they save the state dict."""
    state = model.state_dict() | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    for i, document in enumerate((state, {"model": state, "epoch": 3}, {"state_dict": state})):
        torch.save(document, tmp_path / f"{i}.pth")
        assert same(load_checkpoint(tmp_path / f"{i}.pth").state_dict(), model.state_dict())  # type: ignore[arg-type]


def test_drops_mobile_sams_unused_classifier(tmp_path: Path) -> None:
    model = build_mobile_sam(**TINY_VIT)
    unused = {f"image_encoder.{n}.{k}": torch.zeros(2) for n in ("norm_head", "head") for k in ("weight", "bias")}
    torch.save(model.state_dict() | unused, tmp_path / "mobile_sam.pt")
    assert same(load_checkpoint(tmp_path / "mobile_sam.pt").state_dict(), model.state_dict())  # type: ignore[arg-type]


def test_hugging_faces_names_in_a_bare_file(model: Sam, tmp_path: Path) -> None:
    state = huggingface.convert_to_huggingface(model.state_dict())
    assert "vision_encoder.layers.0.layer_norm1.weight" in state
    both = state | {"prompt_encoder.shared_embedding.positional_embedding": state["shared_image_embedding.positional_embedding"]}
    torch.save(both, tmp_path / "pytorch_model.bin")
    assert same(load_checkpoint(tmp_path / "pytorch_model.bin").state_dict(), model.state_dict())  # type: ignore[arg-type]


def test_half_precision_files_are_read_in_full(model: Sam, tmp_path: Path) -> None:
    safetensors.torch.save_file({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "half.safetensors")
    loaded = load_checkpoint(tmp_path / "half.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in model.state_dict().items())


def test_reads_decoder_heads_from_the_folder(tmp_path: Path) -> None:
    model = build_sam(**VIT | {"decoder_heads": 4})
    export_weights(model, tmp_path / "folder")
    decoder = load_checkpoint(tmp_path / "folder").mask_decoder
    assert decoder.transformer.layers[0].self_attn.num_heads == 4  # type: ignore[union-attr]
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "sam2"}))
    with pytest.raises(CheckpointError, match=r"config\.json has model_type 'sam2'; expected 'sam'"):
        load_checkpoint(tmp_path / "folder")
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        load_checkpoint(tmp_path / "folder")


def test_the_hash_of_a_folder_is_that_of_its_weights(model: Sam, tmp_path: Path) -> None:
    export_weights(model, tmp_path)
    assert checkpoint_hash(tmp_path) == file_sha256(tmp_path / "model.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.mark.parametrize(
    "model",
    [build_mobile_sam(**TINY_VIT), build_sam(**VIT, stem="conv"), build_sam(**VIT, use_rel_pos=False)],
    ids=["TinyViT", "convolutional stem", "no relative positions"],
)
def test_rejects_models_without_a_hugging_face_equivalent(model: Sam, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written for Hugging Face"):
        export_weights(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_rejects_an_unknown_suffix(model: Sam, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx has suffix \.onnx: expected \.pth, or none"):
        export_weights(model, tmp_path / "model.onnx")


def test_names_missing_and_unexpected_tensors(model: Sam, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    del state["mask_decoder.iou_token.weight"], state["image_encoder.blocks.1.norm1.bias"]
    torch.save(state | {"prompt_encoder.extra": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "a.pth")
    for mismatch in (
        "missing mask_decoder.iou_token",
        "missing image_encoder.blocks.1.norm1.bias",
        "unexpected prompt_encoder.extra",
    ):
        assert mismatch in str(error.value)
    encoder = {k: v for k, v in state.items() if k.startswith("image_encoder.")}
    torch.save(encoder, tmp_path / "b.pth")
    with pytest.raises(
        CheckpointError, match=r"b\.pth lacks mask_decoder\.transformer\.layers\.0\.mlp\.lin1\.weight: give a run"
    ):
        load_checkpoint(tmp_path / "b.pth")


def test_rejects_a_truncated_safetensors_file(model: Sam, tmp_path: Path) -> None:
    path = tmp_path / "truncated.safetensors"
    safetensors.torch.save_file(dict(model.state_dict()), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"truncated\.safetensors is not a checkpoint \(SafetensorError.*give a run"):
        load_checkpoint(path)


def test_a_predictor_of_a_released_file(model: Sam, tmp_path: Path) -> None:
    export_weights(model, tmp_path / "released.pth")
    predictor = load_predictor(str(tmp_path / "released.pth"))
    assert same(predictor.model.state_dict(), model.state_dict())  # type: ignore[arg-type]


def test_training_starts_from_released_weights(model: Sam, tmp_path: Path) -> None:
    export_weights(model, tmp_path / "folder")
    save_checkpoint(tmp_path / "model.pt", model, {"_target_": "sam_train.model.build.build_sam", **VIT}, {})
    for name in ("folder", "model.pt"):
        other = build_sam(**VIT, drop_path_rate=0.2)
        said = initialize_from_checkpoint(other, tmp_path / name)
        assert said == f"{tmp_path / name}: all {len(model.state_dict())} tensors loaded"
        assert same(other.state_dict(), model.state_dict())  # type: ignore[arg-type]


def test_frozen_batch_norms_want_released_weights() -> None:
    with pytest.raises(ConfigError, match=r"give init_checkpoint=, or set model\.freeze_batch_norm=false"):
        load_initial_weights(build_mobile_sam(**TINY_VIT, freeze_batch_norm=True), None)
    load_initial_weights(build_mobile_sam(**TINY_VIT), None)


class FakeMae(nn.Module):
    """A masked auto-encoder's encoder, with the names of MAE's own code, written out."""

    def __init__(self, *, patch: int, grid: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, grid**2 + 1, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.blocks = nn.ModuleList(nn.Module() for _ in range(depth))
        for block in self.blocks:
            block.norm1, block.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def grid_tokens(self, images: Tensor) -> Tensor:
        """Tokens of the image alone after the blocks: what the encoder does in ViTDet, without class token and last norm."""
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]  # type: ignore[operator,union-attr]
        for block in self.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # type: ignore[operator,union-attr]
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[operator,union-attr]
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))  # type: ignore[operator,union-attr]
        return x


def vit_for_mae(**changes: Any) -> Sam:
    """Global attention everywhere, as in a masked auto-encoder."""
    return build_sam(**VIT | {"global_attn_indexes": [0, 1, 2]} | changes)


def mae_file(mae: FakeMae, path: Path, extra: dict[str, Tensor]) -> Path:
    torch.save({"model": mae.state_dict() | extra}, path)
    return path


@pytest.mark.parametrize(
    "extra",
    [
        {"mask_token": torch.zeros(1), "decoder_pos_embed": torch.zeros(1), "decoder_blocks.0.norm1.bias": torch.zeros(1)},
        {"head.weight": torch.zeros(2), "head.bias": torch.zeros(2), "fc_norm.weight": torch.zeros(2)},
        {},
    ],
    ids=["pre-trained", "classifier", "plain"],
)
def test_mae_fills_the_encoder(extra: dict[str, Tensor], tmp_path: Path) -> None:
    mae = FakeMae(patch=16, grid=4, dim=24, depth=3, heads=3)
    model = vit_for_mae()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = initialize_from_checkpoint(model, mae_file(mae, tmp_path / "mae.pth", extra))
    num_loaded = 3 + 3 * 12  # positions and patch embedding; a block's two norms, two projections and two of the MLP
    num_dropped, num_kept = 3 + len(extra), 3 * 2 + 6
    assert f"image encoder only, {num_loaded} tensors loaded (" in said
    assert f"; {num_dropped} tensors dropped (cls_token, " in said
    assert f"; {num_kept} tensors left as initialised (" in said
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "neck" in name or "rel_pos" in name)
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("image_encoder."))
    images = torch.randn(2, 3, 64, 64)
    model.image_encoder.neck = nn.Identity()
    tokens = model.image_encoder.eval()(images).flatten(2).transpose(1, 2)
    assert torch.allclose(tokens, mae.grid_tokens(images), atol=1e-4)


def test_mae_with_other_patch_size_and_grid(tmp_path: Path) -> None:
    mae = FakeMae(patch=14, grid=3, dim=24, depth=3, heads=3)
    model = vit_for_mae()
    initialize_from_checkpoint(model, mae_file(mae, tmp_path / "mae.pth", {}))
    state = model.image_encoder.state_dict()
    assert torch.equal(state["pos_embed"], resize_position_embeddings(mae.pos_embed.detach(), 4))
    assert torch.equal(state["patch_embed.proj.weight"], resize_patch_kernel(mae.patch_embed.proj.weight.detach(), 16))  # type: ignore[union-attr,operator]


def test_rejects_mae_of_other_sizes(tmp_path: Path) -> None:
    mae = FakeMae(patch=16, grid=4, dim=24, depth=2, heads=3)
    path = mae_file(mae, tmp_path / "mae.pth", {})
    with pytest.raises(
        CheckpointError, match=r"missing blocks\.2\.norm1\.weight.*of its width and depth with model\.stem=linear"
    ):
        initialize_from_checkpoint(vit_for_mae(), path)
    with pytest.raises(
        CheckpointError, match=r"has shape \(24, 3, 16, 16\), expected \(16, 3, 16, 16\)|expected \(1, 4, 4, 16\)"
    ):
        initialize_from_checkpoint(vit_for_mae(depth=2, global_attn_indexes=[0], embed_dim=16, num_heads=2), path)
    with pytest.raises(CheckpointError, match=r"unexpected blocks\.0\.ls1"):
        initialize_from_checkpoint(
            vit_for_mae(depth=2, global_attn_indexes=[0]), mae_file(mae, path, {"blocks.0.ls1": torch.zeros(1)})
        )
    with pytest.raises(CheckpointError, match="unexpected patch_embed"):
        initialize_from_checkpoint(build_mobile_sam(**TINY_VIT), path)


def test_rejects_mae_as_a_full_model(tmp_path: Path) -> None:
    path = mae_file(FakeMae(patch=16, grid=4, dim=24, depth=3, heads=3), tmp_path / "mae.pth", {})
    with pytest.raises(CheckpointError, match=r"only an image encoder .*init_checkpoint="):
        load_checkpoint(path)


def test_positions_of_the_same_grid_are_the_same() -> None:
    table = torch.randn(1, 17, 5)
    assert torch.equal(resize_position_embeddings(table, 4), table[:, 1:].view(1, 4, 4, 5))
    assert torch.equal(resize_position_embeddings(table[:, 1:], 4), table[:, 1:].view(1, 4, 4, 5))
    with pytest.raises(CheckpointError, match="pos_embed has 18 rows"):
        resize_position_embeddings(torch.randn(1, 18, 5), 4)


def cubic(t: float) -> float:
    """Keys' kernel with the slope of image libraries, -0.75."""
    t = abs(t)
    return 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def test_positions_are_interpolated_by_the_cubic_kernel() -> None:
    rows = torch.randn(4)
    resized = resize_position_embeddings(rows[:, None].expand(4, 4).reshape(1, 16, 1), 6)[0, ..., 0]
    for i in range(6):
        place = (i + 0.5) * 4 / 6 - 0.5
        taps = range(math.floor(place) - 1, math.floor(place) + 3)
        expected = sum(cubic(place - tap) * rows[min(max(tap, 0), 3)].item() for tap in taps)
        assert resized[i].tolist() == pytest.approx([expected] * 6, abs=1e-5)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (4, 7)])
def test_an_enlarged_patch_gets_the_same_answer(old: int, new: int) -> None:
    kernel, patches = torch.randn(2, 3, old, old), torch.randn(5, 3, old, old)
    resized, enlarged = resize_patch_kernel(kernel, new), F.interpolate(patches, (new, new), mode="bicubic", align_corners=False)
    for c in range(2):
        for n in range(5):
            before = sum(float((kernel[c, i] * patches[n, i]).sum()) for i in range(3))
            after = sum(float((resized[c, i] * enlarged[n, i]).sum()) for i in range(3))
            assert after == pytest.approx(before, abs=1e-3)
    assert torch.allclose(resized.sum((2, 3)), kernel.sum((2, 3)), atol=1e-4), "constant patches"


def test_a_smaller_kernel_answers_smooth_patches_alike() -> None:
    """Shrinking loses detail; a patch without detail is answered as before."""
    kernel = torch.randn(1, 1, 16, 16)
    assert torch.equal(resize_patch_kernel(kernel, 16), kernel)
    assert resize_patch_kernel(kernel, 8).sum().item() == pytest.approx(kernel.sum().item(), abs=0.05 * kernel.abs().sum().item())
