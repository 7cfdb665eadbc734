"""The cost model: counts on fake tensors equal those of a real step, and estimates follow from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from sam_train.config import build, config_dir, to_plain
from sam_train.cost_model.cost_estimate import HardwareSpec, estimate_cost
from sam_train.cost_model.devices import DEVICES, get_device
from sam_train.cost_model.op_counter import OperationCounter, count_saved_activations
from sam_train.cost_model.step_cost import count_step
from sam_train.errors import ConfigError
from sam_train.model.chunk_sizes import ACCELERATOR_CHUNK_SIZES, override_chunk_sizes
from sam_train.plan import estimate_run_cost
from sam_train.structures import Prompts

NUM_MASKS = 3
HARDWARE = HardwareSpec(
    device=DEVICES["a100-80gb"],
    num_gpus=1,
    shard_optimizer=False,
    shard_encoder=False,
    efficiency=0.5,
    interconnect_gb_per_s=25.0,
)


def config(*overrides: str, root: str = "train") -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose(root, overrides=["data.shards=none", *overrides])


@pytest.mark.parametrize("model", ["vit_nano", "vit_tiny"])
def test_counts_equal_those_of_a_real_step(model: str) -> None:
    """Compares operations and saved bytes of the image encoder and of a round with a fed-back mask."""
    plain = to_plain(config(f"model={model}", "prompts.num_corrections=2"))
    counted = count_step(plain, num_masks=NUM_MASKS)
    sam = build(plain["model"]).train()
    image = torch.rand(1, 3, sam.image_size, sam.image_size)
    counter = OperationCounter()
    with override_chunk_sizes(ACCELERATOR_CHUNK_SIZES), counter, count_saved_activations(sam) as saved_bytes:
        embeddings = sam.image_encoder(image)
    with counter:
        embeddings.float().sum().backward()
    assert counted.encoder is not None
    assert sum(counted.encoder.operations.flops) == sum(counter.operations.flops)
    assert counted.encoder.saved_activation_bytes == saved_bytes[0]

    leaf = embeddings.detach().requires_grad_()
    index, labels = torch.zeros(NUM_MASKS, dtype=torch.long), torch.ones(NUM_MASKS, 2, dtype=torch.long)
    prompts = Prompts.from_points(index, torch.rand(NUM_MASKS, 2, 2) * sam.image_size, labels)
    prompts = prompts.with_mask(torch.randn(NUM_MASKS, 1, sam.logits_size, sam.logits_size))
    targets = (torch.rand(NUM_MASKS, sam.logits_size, sam.logits_size) > 0.5).float()
    counter = OperationCounter()
    with override_chunk_sizes(ACCELERATOR_CHUNK_SIZES), counter, count_saved_activations(sam) as saved_bytes:
        loss = build(plain["losses"])(sam.decode(leaf, prompts, multimask_output=False), targets).total
    with counter:
        loss.backward()
    assert sum(counted.later_round.operations.flops) == sum(counter.operations.flops)
    assert counted.later_round.saved_activation_bytes == saved_bytes[0]
    assert counted.parameters["image_encoder"] == sum(p.numel() for p in sam.image_encoder.parameters())
    assert counted.num_later_rounds == 4


def test_checkpointing_half_precision_and_freezing_lower_the_cost() -> None:
    overrides = ["model=vit_nano", "prompts.num_corrections=1"]
    plain, half = (
        count_step(to_plain(config(*overrides, *more)), num_masks=1) for more in ([], ["trainer.precision=bf16-mixed"])
    )
    checkpointed = count_step(to_plain(config(*overrides, "+model.activation_checkpointing=torch")), num_masks=1)
    frozen = count_step(to_plain(config(*overrides, "freeze_image_encoder=true")), num_masks=1)
    assert plain.encoder is not None
    assert half.encoder is not None
    assert checkpointed.encoder is not None
    assert half.encoder.saved_activation_bytes < 0.75 * plain.encoder.saved_activation_bytes
    assert checkpointed.encoder.saved_activation_bytes < 0.8 * plain.encoder.saved_activation_bytes
    assert sum(checkpointed.encoder.operations.flops) > 1.05 * sum(plain.encoder.operations.flops)
    assert frozen.encoder is None
    assert frozen.flops() < plain.flops()


SMALL_VIT = ["model.depth=2", "model.embed_dim=32", "model.num_heads=2", "model.global_attn_indexes=[1]", "model.image_size=64"]


@pytest.mark.parametrize(("experiment", "rounds", "decoder_depth"), [("annotation_model", 6, 3), ("sam2_image", 8, 2)])
def test_counts_the_rounds_of_the_recipes(experiment: str, rounds: int, decoder_depth: int) -> None:
    """Four points and two empty rounds, or eight points; the models are reduced, the other values are those of the recipes."""
    cfg = config(f"experiment={experiment}", *SMALL_VIT, root="plan")
    step = count_step(to_plain(cfg), num_masks=2)
    assert 1 + step.num_later_rounds == rounds
    layers = build(to_plain(cfg)["model"]).mask_decoder.transformer.layers
    assert len(layers) == decoder_depth
    assert step.num_trained == sum(step.parameters.values())


def test_counts_adapters_as_the_trained_part_of_the_encoder() -> None:
    cfg = ["model=vit_nano", "prompts.num_corrections=1"]
    full, adapted = (count_step(to_plain(config(*cfg, *more)), num_masks=1) for more in ([], ["lora=attention", "lora.rank=1"]))
    rest = full.parameters["prompt_encoder"] + full.parameters["mask_decoder"]
    # Two blocks of width 32: A 1 x 32 and B 96 x 1 of qkv, 1 x 32 and 32 x 1 of proj.
    assert adapted.num_trained == rest + 2 * (32 + 96 + 32 + 32)
    assert adapted.flops() < full.flops(), "frozen weights have no gradients"
    with pytest.raises(ConfigError, match="a step with teacher= has none"):
        count_step(to_plain(config(*cfg, "teacher=sam.pth")), num_masks=1)


def test_roofline_takes_the_slowest_of_launch_memory_and_arithmetic() -> None:
    step = count_step(to_plain(config("model=vit_nano", "prompts.num_corrections=1")), num_masks=1)
    operations = step.first_round.operations
    device = replace(DEVICES["a100-80gb"], tflops_fp32=1e9, gb_per_s=1e9, launch_s=0.0)
    assert operations.seconds(replace(device, launch_s=1.0)) == pytest.approx(len(operations.flops))
    assert operations.seconds(replace(device, gb_per_s=1.0)) == pytest.approx(sum(operations.bytes) / 1e9)
    assert operations.seconds(replace(device, tflops_fp32=1.0)) == pytest.approx(sum(operations.flops) / 1e12, rel=1e-3)


def test_sharding_divides_memory_among_the_gpus() -> None:
    step = count_step(to_plain(config("model=vit_nano", "prompts.num_corrections=1")), num_masks=1)
    numbers = {"images_per_step": 8, "images_per_pass": 1, "max_steps": 100}
    single = estimate_cost(step, HARDWARE, **numbers)
    many = estimate_cost(step, replace(HARDWARE, num_gpus=4), **numbers)
    assert single.communication_gb == 0
    assert many.communication_gb == pytest.approx(2 * 4 * sum(step.parameters.values()) * 0.75 / 1e9)
    assert many.roofline_s == pytest.approx(single.roofline_s / 4)
    assert many.step_tflop == single.step_tflop
    assert many.memory_gb == single.memory_gb
    encoder_sharded = estimate_cost(step, replace(HARDWARE, num_gpus=4, shard_encoder=True), **numbers)
    rest = sum(step.parameters.values()) - step.parameters["image_encoder"]
    assert encoder_sharded.memory_gb["weights"] == pytest.approx(4 * (rest + step.parameters["image_encoder"] / 4) / 1e9)
    optimizer_sharded = estimate_cost(step, replace(HARDWARE, num_gpus=4, shard_optimizer=True), **numbers)
    assert optimizer_sharded.memory_gb["optimizer"] == pytest.approx(single.memory_gb["optimizer"] / 4)
    assert optimizer_sharded.memory_gb["weights"] == single.memory_gb["weights"]


def test_prints_tables_and_writes_json(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config("model=vit_nano", "data.max_masks=4", f"plan.out={tmp_path / 'plan.json'}", root="plan")
    document = estimate_run_cost(cfg)
    printed = capsys.readouterr().out
    assert "parameters, image_encoder" in printed
    assert "fits" in printed
    assert document["memory_per_image_gb"]["torch"][4] < document["memory_per_image_gb"]["none"][4]
    assert (tmp_path / "plan.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.gpu=abacus"], "abacus"),
        (["plan.num_gpus=3", "data.images_per_step=4"], "not a multiple of"),
        (["plan.efficiency=0"], "efficiency"),
    ],
)
def test_rejects_invalid_hardware(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        estimate_run_cost(config("model=vit_nano", *overrides, root="plan"))


def test_returns_devices_by_name() -> None:
    assert get_device("h200-141gb").memory_gb == 141
