"""The training step: gradients over rounds and passes, seeding by (seed, step, image), validation by clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import make_sample
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sam_train.inference import Predictor
from sam_train.losses import SamLoss, text_alignment_loss
from sam_train.model import Sam
from sam_train.model.build import build_sam
from sam_train.model.embedding_hash import embedding_hash
from sam_train.model.layers import DropPath
from sam_train.optim import OptimizerFactory
from sam_train.prompts import PromptSimulator
from sam_train.prompts.background_clicks import background_clicks
from sam_train.prompts.rng import seeded_generator
from sam_train.shards import Sample
from sam_train.structures import Batch, Prediction
from sam_train.training import SamModule
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.step_metrics import ReducedStepMetrics
from sam_train.training.step_rng import RngStream, draw_drop_paths

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # one batch in memory needs none
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # Lightning 2.6 with torch 2.13
]

SIZE = 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: more do not help at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_sam(**changes: Any) -> Sam:
    torch.manual_seed(0)
    numbers: dict[str, Any] = {
        "image_size": SIZE,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "global_attn_indexes": [1],
        "window_size": 2,
        "prompt_dim": 32,
        "decoder_mlp_dim": 32,
        "decoder_heads": 4,
        "stem": "conv",
    }
    return build_sam(**numbers | changes)


def make_module(
    model: Sam | None = None, *, loss: SamLoss | None = None, num_corrections: int = 2, lr: float = 3e-3, **values: Any
) -> SamModule:
    optimizer = OptimizerFactory(lr=lr, layer_decay=1.0, warmup_steps=1)
    simulator = PromptSimulator(num_corrections=num_corrections, num_mask_only_rounds=2)
    return SamModule(
        model or tiny_sam(), simulator, loss or SamLoss(focal_normalize="weights", focal_weight=1), optimizer, **values
    )


def make_batch() -> Batch:
    """Two images with two and one bright rectangles."""
    images = torch.full((2, 3, SIZE, SIZE), 60, dtype=torch.uint8)
    targets = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    targets[0, 3:15, 4:14] = targets[1, 18:28, 16:30] = targets[2, 8:20, 6:26] = True
    index = torch.tensor([0, 0, 1])
    for image, target in zip(index.tolist(), targets, strict=True):
        images[image, :, target] = 200
    return Batch(
        keys=("a", "b"), images=images, sizes_hw=torch.tensor([[SIZE, SIZE], [24, SIZE]]), image_index=index, target_masks=targets
    )


class StepOnly(SamModule):
    """The step without a trainer and without an optimiser step: gradients are kept."""

    step = 0

    @property
    def global_step(self) -> int:
        return self.step

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)

    def lr_schedulers(self) -> Any:
        return NoSchedule()

    def _log_step(self, sums: ReducedStepMetrics, gradient_norm: Tensor) -> None:
        self.sums, self.gradient_norm = sums, gradient_norm


class NoSchedule:
    def step(self) -> None:
        """Keep the learning rates."""


def step_only(**values: Any) -> StepOnly:
    module = make_module(**values)
    module.__class__ = StepOnly
    assert isinstance(module, StepOnly)
    return module


@pytest.mark.parametrize("loss_resolution", ["grid", "full"])
def test_gradients_of_separate_rounds_equal_those_of_the_summed_loss(loss_resolution: str) -> None:
    module, batch = step_only(num_corrections=3, loss_resolution=loss_resolution), make_batch()
    module.training_step(batch, 0)
    actual = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}

    module.zero_grad()
    simulator, rng = module.simulator, module.prompt_rng(batch, 0)
    embeddings = module.model.encode_images(batch.images, batch.sizes_hw)
    targets = batch.target_masks.float()
    if loss_resolution == "grid":
        coverage = nn.functional.avg_pool2d(targets, SIZE // module.model.logits_size)
        targets = (coverage > 0.5).float()
    prompts = simulator.first_prompts(batch.target_masks, batch.image_index, rng)
    total = torch.zeros(())
    rounds = simulator.draw_rounds(seeded_generator((module.seed, module.step, 0, 1)))
    for round_ in rounds:
        prediction = module.model.decode(embeddings, prompts, multimask_output=round_.multimask_output)
        full = nn.functional.interpolate(prediction.mask_logits, (SIZE, SIZE), mode="bilinear")
        logits = prediction.mask_logits if loss_resolution == "grid" else full
        total = total + module.loss(Prediction(mask_logits=logits, iou_scores=prediction.iou_scores), targets).total
        best = prediction.iou_scores.argmax(1)
        chosen, rows = prediction.mask_logits.detach()[torch.arange(3), best][:, None], torch.arange(3)
        masks = full.detach()[rows, best] > 0
        prompts = simulator.next_prompts(round_, prompts, masks, batch.target_masks, chosen, rng)
    total.backward()

    losses = module.sums.loss_per_round()
    assert len(rounds) == len(losses) == 1 + 3 + 2
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    expected = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
    check_gradients(actual, expected)
    norm = torch.cat([grad.flatten() for grad in expected.values()]).norm()
    assert module.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-4)


def check_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], *, rounding: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    assert expected["image_encoder.patch_embed.layers.0.weight"].abs().max() > 0
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, grad in expected.items():
        assert torch.allclose(actual[name], grad, rtol=1e-3, atol=rounding * scale), name


def test_several_passes_give_the_same_step() -> None:
    """The images have one and two masks: a mean of the means of passes would be wrong."""
    gradients, losses = [], []
    for images_per_pass in (None, 1):
        module = step_only(model=tiny_sam(drop_path_rate=0.5), images_per_pass=images_per_pass, seed=1).train()
        module.training_step(make_batch(), 0)
        gradients.append({name: p.grad for name, p in module.model.named_parameters() if p.grad is not None})
        losses.append(module.sums.metrics())
    check_gradients(gradients[1], gradients[0], rounding=1e-4)  # type: ignore[arg-type]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert losses[1][name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("cached", [True, False])
def test_frozen_encoder_has_no_gradients_and_encodes_each_image_once(
    tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_sam(drop_path_rate=0.9), make_batch()
    with torch.no_grad():
        expected = model.eval().encode_images(batch.images, batch.sizes_hw)
    frozen = FrozenEncoder(model, tmp_path if cached else None, cache_dtype="float32")
    module = step_only(model=model, frozen_encoder=frozen).train()
    encoded: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images, sizes: encoded.append(len(images)) or encode(images, sizes))
    for _ in range(2):
        module.training_step(batch, 0)
    assert encoded == ([2] if cached else [2, 2])
    assert torch.allclose(module.encode(batch), expected, atol=1e-6)
    assert all(p.grad is None for p in model.image_encoder.parameters())
    assert all(p.grad is not None for p in model.mask_decoder.transformer.parameters())
    assert not any("image_encoder" in name for name, p in model.named_parameters() if p.requires_grad)


def test_embedding_cache_distinguishes_padding_from_black_margins(tmp_path: Path) -> None:
    """The same pixels have another embedding if the black rows are padding instead of part of the image."""
    model, batch = tiny_sam(), make_batch()
    frozen = FrozenEncoder(model, tmp_path)
    images = torch.zeros_like(batch.images)
    images[:, :, :24] = 100
    embeddings = frozen(replace(batch, images=images))  # 32 and 24 rows high
    assert not torch.equal(embeddings[0], embeddings[1])


def test_embeddings_are_stored_by_the_weights_that_encode(tmp_path: Path) -> None:
    """The weights of a resumed run are loaded after the frozen encoder was made, from another file than the initial ones."""
    first, second, batch = tiny_sam(), tiny_sam(), make_batch()
    second.load_state_dict({name: tensor + 0.1 for name, tensor in first.state_dict().items()})
    frozen = FrozenEncoder(first, tmp_path)
    first.load_state_dict(second.state_dict())
    frozen(batch)
    assert [path.name for path in tmp_path.iterdir()] == [embedding_hash(second)]


def first_points(module: StepOnly, *, step: int, offset: int = 0) -> Tensor:
    module.step = step
    batch = make_batch()
    return module.simulator.first_prompts(batch.target_masks, batch.image_index, module.prompt_rng(batch, offset)).points_xy


def test_prompts_depend_on_seed_step_and_image_index_only() -> None:
    module = step_only(seed=3)
    expected = first_points(module, step=5)
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(first_points(step_only(seed=3), step=5), expected)
    for other in (first_points(module, step=6), first_points(module, step=5, offset=2), first_points(step_only(seed=4), step=5)):
        assert not torch.equal(other, expected)


def test_prompts_of_an_image_do_not_depend_on_the_rest_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = step_only(seed=3), make_batch()
    together = module.simulator.first_prompts(batch.target_masks, batch.image_index, module.prompt_rng(batch, 0)).points_xy
    for rank, part in enumerate(batch.split(1)):
        monkeypatch.setattr("sam_train.training.step_rng.rank_and_world_size", lambda rank=rank: (rank, 2))
        separate = module.simulator.first_prompts(part.target_masks, part.image_index, module.prompt_rng(part, 0)).points_xy
        assert torch.equal(separate, together[batch.image_index == rank])


def test_dropped_paths_of_an_image_do_not_depend_on_the_rest_of_the_batch() -> None:
    encoder = tiny_sam(drop_path_rate=0.5, depth=4).image_encoder
    paths = [module for module in encoder.modules() if isinstance(module, DropPath) and module.rate]
    assert len(paths) == 6, "attention and feed-forward of each block but the first"
    drawn = []
    for seeds in ([(1, 5, 0, 4), (1, 5, 1, 4)], [(1, 5, 1, 4)], [(1, 6, 1, 4)]):
        draw_drop_paths(encoder, seeds, torch.device("cpu"))
        drawn.append(torch.stack([path.uniform_draws for path in paths if path.uniform_draws is not None]))
    assert torch.equal(drawn[0][:, 1:], drawn[1])
    assert not torch.equal(drawn[0][:, :1], drawn[1])
    assert not torch.equal(drawn[2], drawn[1])
    assert len(drawn[1].unique()) == len(paths), "each branch has its own draw"


def test_repeated_step_has_the_same_gradients() -> None:
    """Drop path and dropout are seeded by the step."""
    grads = []
    for disturbance in (1, 2):
        module = step_only(model=tiny_sam(drop_path_rate=0.5, decoder_dropout=0.2))
        module.train()
        module.step = 7
        torch.manual_seed(disturbance)
        module.training_step(make_batch(), 0)
        grads.append(torch.cat([p.grad.flatten() for p in module.model.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


@pytest.fixture
def quiet_trainer() -> Callable[..., Trainer]:
    def make(**values: Any) -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **values,
        )

    return make


class RecordsLoss(SamModule):
    """Records the loss of every step."""

    def _log_step(self, sums: ReducedStepMetrics, gradient_norm: Tensor) -> None:
        self.__dict__.setdefault("losses", []).append(float(sums.metrics()["loss"]))
        super()._log_step(sums, gradient_norm)


def loader(batch: Batch, num: int) -> DataLoader[Any]:
    return DataLoader([batch] * num, batch_size=None)  # type: ignore[arg-type]


def test_training_lowers_the_loss_on_one_repeated_batch(quiet_trainer: Callable[..., Trainer]) -> None:
    module = make_module(num_corrections=1, gradient_clip=1.0)
    module.__class__ = RecordsLoss
    trainer = quiet_trainer(max_steps=15)
    trainer.fit(module, loader(make_batch(), 15))
    losses = module.__dict__["losses"]
    assert trainer.global_step == 15, "one optimiser step per batch"
    assert len(losses) == 15
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(losses[-1], rel=1e-5)
    assert trainer.callback_metrics["train/masks_per_image"].item() == 1.5


def test_gradients_are_clipped(quiet_trainer: Callable[..., Trainer]) -> None:
    class Norm(SamModule):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("manual optimisation must not call this hook")

        def _update_weights(self, optimizer: Any, sums: ReducedStepMetrics) -> Tensor:
            norm = super()._update_weights(optimizer, sums)
            norms.append(float(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).norm()))
            return norm

    for clip, below in ((1e-3, True), (None, False)):
        norms: list[float] = []
        module = make_module(num_corrections=0, gradient_clip=clip)
        module.__class__ = Norm
        quiet_trainer(max_steps=1).fit(module, loader(make_batch(), 1))
        assert (norms[0] <= 1.001e-3) == below


def test_compiles_only_the_image_encoder_if_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))  # noqa: PLW0108 # a builtin would not bind
    make_module()
    assert not compiled
    module = make_module(compile_encoder=True)
    assert compiled == [module.model.image_encoder]


def test_the_learning_rate_follows_the_schedule(quiet_trainer: Callable[..., Trainer]) -> None:
    module = make_module(num_corrections=0)
    module.optimizer_factory = OptimizerFactory(lr=1e-3, layer_decay=1.0, warmup_steps=4)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(module, loader(make_batch(), 2))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-3 / 4)


class ListedIous:
    """Stands for the protocol of an evaluation: has the IoUs of each sample, by its number."""

    num_clicks, report = 3, (1, 3, 9)
    ious: ClassVar = {1: [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]], 2: [], 3: [[0.9, 1.0, 1.0]]}

    def measure_sample(self, predictor: Predictor, sample: Sample, number: int) -> dict[str, Any]:
        return {"ious": self.ious[number]}


def test_validation_measures_by_its_protocol_and_resets(quiet_trainer: Callable[..., Trainer]) -> None:
    """The mean over masks, of the reported numbers of clicks that are made; an image may have no mask, a batch no image."""
    sample = make_sample(0)
    batches = [replace(make_batch(), sources=tuple((i, sample) for i in numbers)) for numbers in ([1, 2], [], [3])]
    module, trainer = make_module(validation=ListedIous()), quiet_trainer(max_steps=1)
    for batches_, expected in ((batches, (0.5, 2 / 3)), (batches[2:], (0.9, 1.0)), (batches[1:2], (0, 0))):
        loader_ = DataLoader(batches_, batch_size=None)  # type: ignore[arg-type]
        (metrics,) = trainer.validate(module, loader_, verbose=False)
        values = dict(zip(("val/miou_at_1", "val/miou_at_3", "val/skipped"), (*expected, 0), strict=True))
        assert metrics == pytest.approx(values), "metrics must be reset"


def test_grid_targets_are_cells_covered_by_more_than_half() -> None:
    module = make_module()
    assert isinstance(module, LightningModule)
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[0, 0, 0:2] = True  # half of the cell of 2 x 2: not more than half
    masks[0, 2, 2:4] = masks[0, 3, 2] = True  # three of four
    masks[0, 4:6, 4:6] = True  # a full cell
    targets = module.loss_targets(masks)
    assert targets.shape == (1, 16, 16)
    assert targets[0].nonzero().tolist() == [[1, 1], [2, 2]]


def test_rejects_an_unknown_loss_resolution() -> None:
    with pytest.raises(ValueError, match="loss_resolution must be 'grid' or 'full', got 'half'"):
        make_module(loss_resolution="half")


def test_grid_targets_keep_thin_objects() -> None:
    module = make_module()
    cells = module.model.logits_size
    assert 2 * cells == SIZE
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 4:9, 4:8] = True  # 2 x 2 full cells and a row of half covered cells, which are background
    masks[1, 11, ::2] = True  # a quarter of each cell it touches
    targets = module.loss_targets(masks)
    expected = torch.zeros(2, cells, cells)
    expected[0, 2:4, 2:4] = 1
    expected[1, 5] = 1
    assert torch.equal(targets, expected)


def test_text_alignment_is_added_to_the_first_round_of_a_step_with_text_prompts() -> None:
    def losses_of(batch: Batch, **values: Any) -> Tensor:
        module = step_only(model=tiny_sam(text_dim=6), **values)
        module.training_step(batch, 0)
        return module.sums.loss_per_round()

    texts = nn.functional.normalize(torch.randn(len(make_batch().image_index), 6), dim=1)
    with_text = replace(make_batch(), text_embeddings=texts)
    plain, aligned = losses_of(with_text), losses_of(with_text, text_alignment_weight=0.5)
    model = tiny_sam(text_dim=6)
    with torch.no_grad():
        text_tokens = model.prompt_encoder.embed_text(texts)
        embeddings = model.encode_images(make_batch().images, make_batch().sizes_hw)
        extra = text_alignment_loss(text_tokens, embeddings, make_batch().image_index, make_batch().target_masks)
    assert float(aligned[0] - plain[0]) == pytest.approx(0.5 * float(extra), rel=1e-4)
    assert torch.equal(plain[1:], aligned[1:])
    assert torch.equal(losses_of(make_batch()), losses_of(make_batch(), text_alignment_weight=0.5)), (
        "a step without text prompts has no alignment loss"
    )


def test_background_clicks_train_the_scores_of_pixels_outside_all_masks_to_be_zero() -> None:
    def gradients(batch: Batch, **values: Any) -> dict[str, Tensor]:
        module = step_only(**values)
        module.training_step(batch, 0)
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    plain, trained = gradients(make_batch()), gradients(make_batch(), background_clicks=3)
    module = step_only(background_clicks=3)
    prompts = background_clicks(make_batch(), 3, module.image_seeds(make_batch(), RngStream.BACKGROUND, 0))
    assert prompts.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    covered = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    covered[0], covered[1] = make_batch().target_masks[:2].any(0), make_batch().target_masks[2]
    covered[1, 24:] = True  # padding
    columns, rows = prompts.points_xy[:, 0].long().T
    assert not covered[prompts.image_index, rows, columns].any()
    embeddings = module.model.encode_images(make_batch().images, make_batch().sizes_hw)
    scores = module.model.decode(embeddings, prompts, multimask_output=True).iou_scores
    (scores.square().mean(1).sum() / len(make_batch().image_index)).backward()
    for name, parameter in module.named_parameters():
        extra = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(trained[name], plain[name] + extra, atol=1e-5), name
    incomplete = replace(make_batch(), dropped={"max_masks": 1})
    assert all(torch.equal(a, plain[name]) for name, a in gradients(incomplete, background_clicks=3).items())
    with pytest.raises(ValueError, match="background_clicks must be at least 1, or null for none, got 0"):
        make_module(background_clicks=0)
    everything = replace(make_batch(), target_masks=torch.ones_like(make_batch().target_masks))
    assert len(background_clicks(everything, 2, [(0,), (1,)])) == 0
