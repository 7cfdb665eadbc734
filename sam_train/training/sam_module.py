"""The step: prompt, decode, loss, correct, repeat (paper, section A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from sam_train.losses import LossTerms, SamLoss, text_alignment_loss
from sam_train.masks import mask_iou
from sam_train.metrics import ClickIoU
from sam_train.model import Sam
from sam_train.optim import OptimizerFactory
from sam_train.prompts import NextStep, PromptRound, PromptSimulator
from sam_train.prompts.rng import PerImageRng, hash_seed, seeded_generator
from sam_train.structures import Batch, Prediction, Prompts
from sam_train.training.ema import WeightEMA
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.gradients import clip_gradients, divide_gradients, sum_gradients
from sam_train.training.nan_guard import check_finite
from sam_train.training.step_metrics import ReducedStepMetrics, StepMetricsAccumulator, rank_and_world_size
from sam_train.training.stochastic_depth import draw_drop_paths

VALIDATION_CLICKS = (1, 3, 5)
TEXT_THEN_CLICK = (PromptRound(0, NextStep.ERROR_CLICK), PromptRound(1, NextStep.END))
"""What validation asks by words: one answer, and one more after a click."""


class SamModule(LightningModule):
    """Trains a `Sam` with simulated interactive prompts.

    The rounds are backpropagated one by one into the detached image embeddings, and the encoder once at the end: eleven
    rounds cost the memory of one. Fed-back logits carry no gradient (the paper does not say; SAM 2's code lets it flow).

    The loss of a step is a mean over all of its masks, on however many devices and in however many passes they are: each
    device backpropagates sums, which are added up over the devices once a step and divided by the number of masks.

    loss_resolution: "grid" compares at the decoder's resolution, a cell being target when more than half of it is, so
        that what is thinner than half a cell is lost; "full" upsamples the logits to the model frame, as SAM 2's code
        does, at four to sixteen times the cost.
    compile_encoder: the image encoder through torch.compile. Half a minute first; on the one CPU it was tried on it
        gained nothing to a tenth, on a GPU it was not tried.
    frozen_encoder: where the image embeddings come from when the image encoder is not trained; None trains it.
    gradient_clip: largest gradient norm; none in SAM 1, 0.1 in SAM 2. None switches it off.
    ema_decay: of a running mean of the weights, which validation measures and model.pt holds (WeightEMA). None: no mean.
    images_per_pass: the most images that a device takes at once; the rest of its share of a step follows in further passes.
        None takes all. Changes memory, not the result.
    text_alignment_weight: weight of what teaches words and image embeddings each other in a step that begins with words
        (`text_alignment_loss`). 0 is the paper; a model from random weights does not learn words without it.
    seed: prompts and dropped paths are drawn from (seed, step, place of the image in the step), so a resumed step draws what
        the unbroken run drew, on any number of devices. Dropout comes from (seed, step, rank): other devices, other draws.
    """

    progress_bar_metrics = (("loss", "loss"), ("iou", "iou_last_round"))
    """Names on the progress bar, and of what they show."""

    def __init__(
        self,
        model: Sam,
        simulator: PromptSimulator,
        loss: SamLoss,
        optimizer: OptimizerFactory,
        *,
        frozen_encoder: FrozenEncoder | None = None,
        loss_resolution: str = "grid",
        gradient_clip: float | None = None,
        compile_encoder: bool = False,
        ema_decay: float | None = None,
        images_per_pass: int | None = None,
        text_alignment_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if images_per_pass is not None and images_per_pass < 1:
            raise ValueError(f"images_per_pass must be at least 1, or null for all at once, got {images_per_pass}")
        if loss_resolution not in ("grid", "full"):
            raise ValueError(f"loss_resolution must be 'grid' or 'full', got {loss_resolution!r}")
        self.automatic_optimization = False  # several backward passes a step
        self.model, self.simulator, self.loss, self.optimizer_factory = model, simulator, loss, optimizer
        self.loss_resolution, self.gradient_clip, self.seed = loss_resolution, gradient_clip, seed
        self.frozen_encoder, self.images_per_pass, self.text_alignment_weight = (
            frozen_encoder,
            images_per_pass,
            text_alignment_weight,
        )
        self.ema = WeightEMA(ema_decay) if ema_decay is not None else None
        self.preemption_requested = self.is_preempted = False
        if compile_encoder:
            model.image_encoder.compile()  # in place: the names of the weights stay
        self.val_simulator = PromptSimulator(
            num_corrections=max(VALIDATION_CLICKS) - 1, num_empty_rounds=0, box_probability=0, click="center"
        )
        self.val_iou, self.val_iou_from_text = ClickIoU(max(VALIDATION_CLICKS)), ClickIoU(len(TEXT_THEN_CLICK))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimiser step over all rounds of a batch."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        tally, place = self._new_step_metrics(batch.images.device), 0
        tally.count(batch, stop=self.preemption_requested)
        torch.manual_seed(hash_seed((self.seed, self.global_step, rank_and_world_size()[0], 3)))  # for dropout
        for part in batch.split(self.images_per_pass or len(batch.keys)):
            draw_drop_paths(self.model.image_encoder, self._seeds(part, place, 4), part.images.device)
            self._backward(part, self._draws(part, place), tally)
            place += len(part.keys)
        sums = tally.reduce()
        norm = self._mean_gradients(sums)
        check_finite(sums, norm, batch.keys, step=self.global_step, folder=self._folder())
        self._finish_step(optimizer, sums)
        self._log_step(sums, norm)

    def _backward(self, batch: Batch, draws: PerImageRng, tally: StepMetricsAccumulator) -> None:
        """Add the gradients of the summed losses of `batch` to what is there."""
        encoded = self._encode(batch)
        embeddings = encoded.detach().requires_grad_(encoded.requires_grad)
        targets = self._targets(batch.target_masks)
        prompts = self._first(batch, draws)
        for round_ in self.simulator.draw_rounds(seeded_generator((self.seed, self.global_step, 0, 1))):
            prediction = self.model.decode(embeddings, prompts, multimask_output=round_.multimask_output)
            terms = self.loss(self._at_loss_resolution(prediction), targets)
            if self.text_alignment_weight and round_.index == 0 and prompts.text_embeddings is not None:
                terms = self._with_alignment(terms, prompts.text_embeddings, embeddings, batch)
            self.manual_backward(terms.total * len(prompts))
            tally.add_terms(round_.index, terms)
            best = prediction.best().detach()
            answers = self._answers(best)
            prompts = self.simulator.next_prompts(round_, prompts, answers, batch.target_masks, best.mask_logits, draws)
        if encoded.requires_grad:
            self.manual_backward(encoded, gradient=embeddings.grad)

    def _with_alignment(
        self, terms: LossTerms, texts: Float[Tensor, "N E"], embeddings: Float[Tensor, "B C h w"], batch: Batch
    ) -> LossTerms:
        words = self.model.prompt_encoder.embed_text(texts)
        alignment = text_alignment_loss(words, embeddings, batch.image_index, batch.target_masks)
        return replace(terms, total=terms.total + self.text_alignment_weight * alignment)

    def _first(self, batch: Batch, draws: PerImageRng) -> Prompts:
        generator = seeded_generator((self.seed, self.global_step, 0, 5))
        if batch.text_embeddings is not None and self.simulator.use_text_prompt(generator):
            return Prompts.from_text(batch.image_index, batch.text_embeddings)
        return self.simulator.first_prompts(batch.target_masks, batch.image_index, draws)

    def _mean_gradients(self, sums: ReducedStepMetrics) -> Tensor:
        """From this process's summed gradients to the step's mean ones, clipped; their norm before that."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        sum_gradients(parameters)
        divide_gradients(parameters, sums.count)
        return clip_gradients(parameters, self.gradient_clip)

    def _finish_step(self, optimizer: Any, sums: ReducedStepMetrics) -> None:
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        if self.ema:
            self.ema.update(self)
        self.is_preempted, self.last_step_metrics = sums.stop, sums

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """IoU after each of five careful clicks, and by words and after a click more where masks have words; model frame."""
        generator = torch.Generator().manual_seed(0)
        embeddings = self._encode(batch)
        clicks = self.val_simulator.first_prompts(batch.target_masks, batch.image_index, generator)
        self.val_iou.update(self._ious(batch, embeddings, clicks, self.val_simulator.draw_rounds(generator), generator))
        if batch.text_embeddings is not None:
            words = Prompts.from_text(batch.image_index, batch.text_embeddings)
            self.val_iou_from_text.update(self._ious(batch, embeddings, words, TEXT_THEN_CLICK, generator))
        self.log("val/skipped", float(len(batch.skipped)), reduce_fx="sum", sync_dist=True, batch_size=len(batch.keys))

    def _ious(
        self,
        batch: Batch,
        embeddings: Float[Tensor, "B E h w"],
        prompts: Prompts,
        rounds: Sequence[PromptRound],
        generator: torch.Generator,
    ) -> Float[Tensor, "N K"]:
        """Of the answers in each of K rounds that begin with `prompts`."""
        ious = []
        for round_ in rounds:
            best = self.model.decode(embeddings, prompts, multimask_output=round_.multimask_output).best()
            answers = self._answers(best)
            ious.append(mask_iou(answers, batch.target_masks))
            prompts = self.val_simulator.next_prompts(round_, prompts, answers, batch.target_masks, best.mask_logits, generator)
        return torch.stack(ious, 1)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU@1, @3, @5 and, where masks have words, by them and after a click."""
        means = self.val_iou.compute()
        self.val_iou.reset()
        for clicks in VALIDATION_CLICKS:
            self.log(f"val/miou_at_{clicks}", means[clicks - 1], prog_bar=True, sync_dist=True)
        if self.model.prompt_encoder.text_dim is not None:
            by_words, after_click = self.val_iou_from_text.compute()
            self.val_iou_from_text.reset()
            self.log("val/miou_by_words", by_words, prog_bar=True, sync_dist=True)
            self.log("val/miou_by_words_and_click", after_click, sync_dist=True)

    def configure_callbacks(self) -> list[Callback]:
        """The running mean of the weights, if there is one."""
        return [self.ema] if self.ema else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the trainer's `max_steps`."""
        make = getattr(self.trainer.strategy, "build_optimizer", None)  # strategies of ours; one process has Lightning's
        optimizer, schedule = self.optimizer_factory.build(self.model, self.trainer.max_steps, make)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The one epoch of a run is never over: with more max_steps it goes on, and would otherwise end without a word."""
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress["processed"] = progress["completed"] = 0

    def _encode(self, batch: Batch) -> Float[Tensor, "B E h w"]:
        return self.frozen_encoder(batch) if self.frozen_encoder else self.model.encode_images(batch.images, batch.sizes_hw)

    def _new_step_metrics(self, device: torch.device) -> StepMetricsAccumulator:
        return StepMetricsAccumulator(device)

    def _folder(self) -> Path | None:
        return Path(self.trainer.default_root_dir) if self._trainer else None

    def _draws(self, batch: Batch, first: int) -> PerImageRng:
        """Chance for the prompts of a batch; `first` as in `_seeds`."""
        return PerImageRng(self._seeds(batch, first, 2), batch.image_index)

    def _seeds(self, batch: Batch, first: int, stream: int) -> list[tuple[int, ...]]:
        """A seed for each image of `batch`, the first of which is number `first` of this process's share of the step.

        DistributedPositionSampler deals the step's images out in turns, so image i of a process is number i x processes + rank.
        """
        rank, processes = rank_and_world_size()
        places = [(first + i) * processes + rank for i in range(len(batch.keys))]
        return [(self.seed, self.global_step, place, stream) for place in places]

    def _targets(self, masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N h w"]:
        if self.loss_resolution == "full":
            return masks.float()
        covered = F.adaptive_avg_pool2d(masks.float()[:, None], self.model.logits_size)[:, 0]
        # Half of a cell, or half of what its fullest cell has: an object thinner than half a cell is still an object.
        return (covered > 0.5 * covered.amax((1, 2), keepdim=True)).float()

    def _at_loss_resolution(self, prediction: Prediction) -> Prediction:
        if self.loss_resolution == "grid":
            return prediction
        return Prediction(mask_logits=self._upsample(prediction.mask_logits), iou_scores=prediction.iou_scores)

    def _answers(self, best: Prediction) -> Bool[Tensor, "N H W"]:
        return self._upsample(best.mask_logits)[:, 0] > 0

    def _upsample(self, mask_logits: Float[Tensor, "N M h w"]) -> Float[Tensor, "N M H W"]:
        size = (self.model.image_size, self.model.image_size)
        return F.interpolate(mask_logits, size, mode="bilinear", align_corners=False)

    def _log_step(self, sums: ReducedStepMetrics, gradient_norm: Tensor) -> None:
        values, count = sums.metrics(), int(sums.count)
        self.log_dict({f"train/{k}": v for k, v in values.items()} | {"train/gradient_norm": gradient_norm}, batch_size=count)
        for short, name in self.progress_bar_metrics:
            self.log(short, values[name], prog_bar=True, logger=False, batch_size=count)
