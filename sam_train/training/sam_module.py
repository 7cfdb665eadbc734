"""The training step of interactive segmentation: prompt, decode, compute the loss, correct, repeat (paper, section A)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sam_train.losses import LossTerms, SamLoss, text_alignment_loss
from sam_train.model import Sam
from sam_train.optim import OptimizerFactory
from sam_train.prompts import PromptSimulator
from sam_train.prompts.background_clicks import background_clicks
from sam_train.prompts.rng import PerImageRng, seeded_generator
from sam_train.structures import Batch, Prediction, Prompts
from sam_train.training.click_validation import ClickMeasure, ClickValidation, predicted_masks, upsample_mask_logits
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.step_metrics import TERMS_PER_ROUND, StepMetricsAccumulator
from sam_train.training.step_module import StepModule
from sam_train.training.step_rng import RngStream


class SamModule(StepModule):
    """Trains a `Sam` with simulated interactive prompts.

    The rounds are backpropagated one by one into the detached image embeddings, and the encoder once at the end: eleven
    rounds need the memory of one. Fed-back logits carry no gradient (the paper does not say; in SAM 2's code they do).

    loss_resolution: "grid" computes the loss at the decoder's resolution; a cell is foreground if more than half of it is
        covered, which loses structures thinner than half a cell. "full" upsamples the logits to the model frame, as SAM 2's
        code does, at four to sixteen times the cost.
    text_alignment_weight: weight of the loss that aligns text embeddings with image embeddings in a step that begins with text
        prompts (`text_alignment_loss`). 0 is the paper; a model from random weights does not learn text prompts without it.
    validation: measures the validation images; None measures no clicks.
    background_clicks: number of clicks on each image, on pixels outside of all masks, whose IoU scores are trained to be 0. For
        corpora in which every object is annotated: the automatic stage then drops the masks of grid points between the objects.
        None is the paper. A pass with masks that `data.max_masks` left out has none, because these masks are not known here.
    Other parameters as in `StepModule`.
    Raises ValueError if loss_resolution is neither "grid" nor "full", or background_clicks is below 1.
    """

    progress_metrics = (("loss", "loss"), ("IoU", "iou_last_round"))
    metric_names = TERMS_PER_ROUND

    def __init__(
        self,
        model: Sam,
        simulator: PromptSimulator,
        loss: SamLoss,
        optimizer: OptimizerFactory,
        *,
        frozen_encoder: FrozenEncoder | None = None,
        loss_resolution: str = "grid",
        text_alignment_weight: float = 0.0,
        background_clicks: int | None = None,
        gradient_clip: float | None = None,
        compile_encoder: bool = False,
        ema_decay: float | None = None,
        images_per_pass: int | None = None,
        seed: int = 0,
        validation: ClickMeasure | None = None,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            frozen_encoder=frozen_encoder,
            gradient_clip=gradient_clip,
            compile_encoder=compile_encoder,
            ema_decay=ema_decay,
            images_per_pass=images_per_pass,
            seed=seed,
        )
        check_loss_resolution(loss_resolution)
        self.simulator, self.loss = simulator, loss
        self.loss_resolution, self.text_alignment_weight = loss_resolution, text_alignment_weight
        if background_clicks is not None and background_clicks < 1:
            raise ValueError(f"background_clicks must be at least 1, or null for none, got {background_clicks}")
        self.background_clicks = background_clicks
        self.click_validation = ClickValidation(validation)

    def backpropagate(self, batch: Batch, metrics: StepMetricsAccumulator, *, offset: int) -> None:
        """Accumulate the gradients of the summed losses of all rounds of a pass."""
        rng = self.prompt_rng(batch, offset)
        encoded = self.encode(batch)
        embeddings = encoded.detach().requires_grad_(encoded.requires_grad)
        targets = self.loss_targets(batch.target_masks)
        prompts = self._first_prompts(batch, rng)
        for round_ in self.simulator.draw_rounds(seeded_generator((self.seed, self.global_step, 0, int(RngStream.ROUNDS)))):
            prediction = self.model.decode(embeddings, prompts, multimask_output=round_.multimask_output)
            terms = self.loss(self._at_loss_resolution(prediction), targets)
            if self.text_alignment_weight and round_.index == 0 and prompts.text_embeddings is not None:
                terms = self._with_alignment(terms, prompts.text_embeddings, embeddings, batch)
            self.manual_backward(terms.total * len(prompts))
            metrics.add_terms(round_.index, terms)
            best = prediction.best().detach()
            masks = predicted_masks(best, self.model.image_size)
            prompts = self.simulator.next_prompts(round_, prompts, masks, batch.target_masks, best.mask_logits, rng)
        if self.background_clicks and not batch.dropped.get("max_masks"):
            self._backpropagate_background(batch, embeddings, self.background_clicks, offset=offset)
        if encoded.requires_grad:
            self.manual_backward(encoded, gradient=embeddings.grad)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the IoU after each click and, where masks have text embeddings, from text prompts."""
        self.click_validation.update(self.model, batch, self.encode, self.frozen_encoder.cache if self.frozen_encoder else None)
        self.log("val/skipped", float(len(batch.skipped)), reduce_fx="sum", sync_dist=True, batch_size=len(batch.keys))

    def on_validation_epoch_end(self) -> None:
        """Log mIoU after 1, 3 and 5 clicks and, for a model with text prompts, mIoU from text and after one more click."""
        self.click_validation.log_and_reset(self, has_text_prompts=self.model.prompt_encoder.text_dim is not None)

    def prompt_rng(self, batch: Batch, offset: int) -> PerImageRng:
        """Return the random generators of the prompts of a pass; `offset` as in `backpropagate`."""
        return PerImageRng(self.image_seeds(batch, RngStream.PROMPTS, offset), batch.image_index)

    def loss_targets(self, masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N h w"]:
        """Return the ground-truth masks at the resolution of the loss, as 0 and 1."""
        if self.loss_resolution == "full":
            return masks.float()
        coverage = F.adaptive_avg_pool2d(masks.float()[:, None], self.model.logits_size)[:, 0]
        # The threshold is half a cell, or half of the object's largest coverage: thin objects would otherwise have no cell.
        return (coverage > 0.5 * coverage.amax((1, 2), keepdim=True)).float()

    def _first_prompts(self, batch: Batch, rng: PerImageRng) -> Prompts:
        text_seed = (self.seed, self.global_step, 0, int(RngStream.TEXT_PROMPT))
        if batch.text_embeddings is not None and self.simulator.use_text_prompt(seeded_generator(text_seed)):
            return Prompts.from_text(batch.image_index, batch.text_embeddings)
        return self.simulator.first_prompts(batch.target_masks, batch.image_index, rng)

    def _backpropagate_background(
        self, batch: Batch, embeddings: Float[Tensor, "B C h w"], num_clicks: int, *, offset: int
    ) -> None:
        """Accumulate the gradients of the IoU loss of clicks outside of all masks, whose true IoU is 0."""
        seeds = self.image_seeds(batch, RngStream.BACKGROUND, offset)
        prompts = background_clicks(batch, num_clicks, seeds)
        if len(prompts):
            scores = self.model.decode(embeddings, prompts, multimask_output=True).iou_scores.float()
            error = self.loss.iou_error(scores, torch.zeros_like(scores), reduction="none")
            self.manual_backward(self.loss.iou_weight * error.mean(1).sum())

    def _with_alignment(
        self, terms: LossTerms, texts: Float[Tensor, "N E"], embeddings: Float[Tensor, "B C h w"], batch: Batch
    ) -> LossTerms:
        text_tokens = self.model.prompt_encoder.embed_text(texts)
        alignment = text_alignment_loss(text_tokens, embeddings, batch.image_index, batch.target_masks)
        return replace(terms, total=terms.total + self.text_alignment_weight * alignment)

    def _at_loss_resolution(self, prediction: Prediction) -> Prediction:
        if self.loss_resolution == "grid":
            return prediction
        mask_logits = upsample_mask_logits(prediction.mask_logits, self.model.image_size)
        return Prediction(mask_logits=mask_logits, iou_scores=prediction.iou_scores)


def check_loss_resolution(loss_resolution: str) -> None:
    """Raise ValueError if `loss_resolution` is neither "grid" nor "full"."""
    if loss_resolution not in ("grid", "full"):
        raise ValueError(f"loss_resolution must be 'grid' or 'full', got {loss_resolution!r}")
