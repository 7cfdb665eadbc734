"""Prompt encoder, mask decoder and postprocessing as one ONNX graph with the released signature.

Inputs and outputs are those of segment_anything/utils/onnx.py, so that programs for its decoder run this one:

    image_embeddings [1, E, h, w]   point_coords [1, N, 2] model frame   point_labels [1, N] float: -1 padding, 0, 1, 2, 3
    mask_input [1, 1, 4h, 4w]       has_mask_input [1]                   orig_im_size [2] height, width
    masks [1, M, H, W] logits       iou_predictions [1, M]               low_res_masks [1, M, 4h, 4w]

and, with `return_extra_metrics`, stability_scores [1, M] and areas [1, M] before low_res_masks. M is 1 or 4.
With `text_input` there is one more input, text_embeddings [T, E'], of a text prompt: T is 1, or 0 for a prompt without text.
E is C channels, or 4 C of an encoder with `details` (see ImageEncoder), which released models do not have.
One difference: `has_mask_input` is a switch (above 0.5 or not), not a factor; without a mask its convolutions do not run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto

from sam_train.inference.export.graph import Graph, Weights, info, integers, stacked
from sam_train.inference.export.mask_statistics import mask_statistics_head
from sam_train.inference.export.mask_upscaler import MAP_NORM_EPS, MaskUpscaler
from sam_train.inference.export.onnx_transformer import OnnxTransformer
from sam_train.inference.export.postprocess import postprocess_masks
from sam_train.model import Sam
from sam_train.model.mask_decoder import NUM_MULTIMASK_OUTPUTS

NUM_MASKS = NUM_MULTIMASK_OUTPUTS + 1
# One point with its padding point, or the two corners of a box, are ambiguous: select_masks of the released export.
AMBIGUOUS_BELOW, FORBIDDEN = 2.5, 1000.0


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Switches of the released export script, with its defaults.

    return_single_mask: output one mask: of masks 1 to 3 the highest-scored for up to two points, else mask 0.
    use_stability_score: output stability scores of the low-resolution masks in place of predicted IoU.
    return_extra_metrics: also output stability scores and areas of the full-size masks.
    text_input: add the input text_embeddings, for a model that takes text prompts. Not in the released script.
    """

    return_single_mask: bool = False
    use_stability_score: bool = False
    return_extra_metrics: bool = False
    text_input: bool = False

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs in their order."""
        extra = ["stability_scores", "areas"] if self.return_extra_metrics else []
        return ["masks", "iou_predictions", *extra, "low_res_masks"]


def decoder_model(
    sam: Sam, options: ExportOptions, *, full_size: bool = True, half: bool = False, metadata: dict[str, str] | None = None
) -> onnx.ModelProto:
    """Build the ONNX graph of the decoder and check it with onnx.checker.

    full_size: with False the outputs are only iou_predictions and low_res_masks, for callers that upsample masks themselves.
    half: store constants in half precision; computation stays in single precision.
    metadata: key-value pairs that are stored in the model.
    """
    return _Decoder(sam, options, Graph(half=half)).model(full_size, metadata or {})


def embedding_channels(sam: Sam) -> int:
    """Return E, the number of channels of the image embeddings: C, or 4 C with `high_res_features`."""
    return sam.image_embedding_dim


class _Decoder:
    def __init__(self, sam: Sam, options: ExportOptions, graph: Graph) -> None:
        self.g, self.options = graph, options
        self.prompts = Weights(sam.state_dict(), "prompt_encoder.")
        self.decoder = Weights(sam.state_dict(), "mask_decoder.")
        self.iou_sigmoid, self.iou_from_masks = sam.mask_decoder.iou_sigmoid, sam.mask_decoder.iou_from_masks
        self.size, self.grid = sam.image_size, sam.prompt_encoder.grid_size
        self.length, self.channels = self.grid**2, self.decoder["iou_token.weight"].shape[1]
        self.embedding_channels = embedding_channels(sam)
        self.num_masks = 1 if options.return_single_mask else NUM_MASKS
        self.output_tokens = torch.cat([self.decoder["iou_token.weight"], self.decoder["mask_tokens.weight"]])
        blocks, g = sam.mask_decoder.transformer.blocks, graph
        # Computed from constants only: runtimes fold it when they load the file, and the file is a fifth smaller.
        positions, weights = self._features(self._centres()), self.decoder.part("transformer")
        self.transformer = OnnxTransformer(g, weights, blocks[0].self_attn.num_heads, len(blocks), self.length, positions)

    def model(self, full_size: bool, metadata: dict[str, str]) -> onnx.ModelProto:
        prompts = [self._points(), self._text()] if self.options.text_input else [self._points()]
        tokens = self.g.op("Concat", self.output_tokens, *prompts, axis=0)
        queries, image = self.transformer.write(tokens, self._image(), self.output_tokens)
        low, scores = self._masks(queries, image)
        masks, side = self.num_masks, 4 * self.grid
        self.g.op("Identity", scores, name="iou_predictions")
        self.g.op("Identity", low, name="low_res_masks")
        outputs = {
            "iou_predictions": info("iou_predictions", 1, masks),
            "low_res_masks": info("low_res_masks", 1, masks, side, side),
        }
        if full_size:
            full = postprocess_masks(self.g, low, num_masks=masks, side=side, size=self.size)
            self.g.op("Identity", full, name="masks")
            outputs["masks"] = info("masks", 1, masks, "height", "width")
            if self.options.return_extra_metrics:
                outputs |= self._extra_metrics(full)
        names = [name for name in self.options.output_names if name in outputs]
        return self.g.model(self._inputs(full_size), [outputs[name] for name in names], metadata)

    def _inputs(self, full_size: bool) -> list[onnx.ValueInfoProto]:
        return [
            info("image_embeddings", 1, self.embedding_channels, self.grid, self.grid),
            info("point_coords", 1, "num_points", 2),
            info("point_labels", 1, "num_points"),
            info("mask_input", 1, 1, 4 * self.grid, 4 * self.grid),
            info("has_mask_input", 1),
            *(
                [info("text_embeddings", "num_texts", self.prompts["text_projection.weight"].shape[1])]
                if self.options.text_input
                else []
            ),
            *([info("orig_im_size", 2)] if full_size else []),
        ]

    def _points(self) -> str:
        """Write the point embeddings, N x C: Fourier features of the coordinates plus an embedding of each label."""
        g, w = self.g, self.prompts
        coords = g.op("Add", g.reshape("point_coords", -1, 2), np.float32(0.5))
        features = self._features(g.op("Mul", coords, np.float32(1 / self.size)))
        labels = g.op("Cast", g.reshape("point_labels", -1), to=TensorProto.INT64)
        is_point = g.op("Cast", g.op("Not", g.op("Equal", labels, integers(-1))), to=TensorProto.FLOAT)
        table = torch.cat([w["not_a_point_embed.weight"], *[w[f"point_embeddings.{i}.weight"] for i in range(4)]])
        return g.op(
            "Add",
            g.op("Mul", features, g.reshape(is_point, -1, 1)),
            g.op("Gather", table, g.op("Add", labels, integers(1)), axis=0),
        )

    def _text(self) -> str:
        """Write the projected text embeddings, T x C."""
        return self.g.linear("text_embeddings", self.prompts["text_projection.weight"], self.prompts["text_projection.bias"])

    def _centres(self) -> str:
        """Return x and y of the centres of the image tokens in [0, 1], L x 2."""
        y, x = np.divmod(np.arange(self.length), self.grid)
        return self.g.constant(((np.stack([x, y], 1) + 0.5) / self.grid).astype(np.float32))

    def _features(self, coords: str) -> str:
        """Write random Fourier features (... C) of coordinates (... 2) in [0, 1], as model/prompt_encoder.py."""
        g, matrix = self.g, 2 * math.pi * self.prompts["pe_layer.positional_encoding_gaussian_matrix"]
        angles = g.op("MatMul", g.op("Sub", g.op("Mul", coords, np.float32(2)), np.float32(1)), matrix)
        return g.op("Concat", g.op("Sin", angles), g.op("Cos", angles), axis=-1)

    def _image(self) -> str:
        """Write the image tokens plus the embedding of the mask prompt, L x C."""
        g, shape = self.g, (self.length, self.channels)
        tokens = self._channels(0, self.channels)
        then_graph, else_graph = g.child(), g.child()
        with_mask = self._with_mask(then_graph, tokens)
        without_mask = else_graph.op("Add", tokens, self.prompts["no_mask_embed.weight"][0])
        return g.op(
            "If",
            g.op("Greater", g.op("Squeeze", "has_mask_input", integers(0)), np.float32(0.5)),
            then_branch=then_graph.body("with_mask", [], [info(with_mask, *shape)]),
            else_branch=else_graph.body("without_mask", [], [info(without_mask, *shape)]),
        )

    def _channels(self, start: int, end: int) -> str:
        """Return a range of channels of the image tokens, L x (end - start)."""
        rows = self.g.reshape("image_embeddings", self.embedding_channels, self.length)
        rows = rows if end - start == self.embedding_channels else self.g.slice(rows, start, end, axis=0)
        return self.g.transpose(rows, 1, 0)

    def _with_mask(self, g: Graph, tokens: str) -> str:
        """Add the mask embedding to the tokens; a convolution whose stride equals its kernel is a linear map per patch."""
        w = self.prompts.part("mask_downscaling")
        x = g.transpose(g.reshape("mask_input", self.grid, 2, 2, self.grid, 2, 2), 0, 3, 1, 4, 2, 5)
        for conv, norm in (("0", "1"), ("3", "4")):
            weight = w[f"{conv}.weight"].permute(0, 2, 3, 1).flatten(1)
            x = g.linear(g.reshape(x, -1, weight.shape[1]), weight, w[f"{conv}.bias"])
            x = g.gelu(g.layer_norm(x, w.part(norm), MAP_NORM_EPS))
        return g.op("Gemm", x, w["6.weight"].flatten(1), g.op("Add", tokens, w["6.bias"]), transB=1)

    def _masks(self, queries: str, image: str) -> tuple[str, str]:
        """Write low-resolution masks, 1 x M x 4h x 4w, and their scores, 1 x M, selected by the options."""
        g, options = self.g, self.options
        scores = self._perceptron([self.decoder.part("iou_prediction_head")], g.slice(queries, 0, 1, axis=0))
        heads = [self.decoder.part(f"output_hypernetworks_mlps.{i}") for i in range(NUM_MASKS)]
        maps = self._perceptron(heads, g.reshape(g.slice(queries, 1, 1 + NUM_MASKS, axis=0), NUM_MASKS, 1, self.channels))
        maps, scores = g.reshape(maps, NUM_MASKS, -1), g.reshape(scores, 1, NUM_MASKS)
        if not options.use_stability_score and not self.iou_from_masks:
            scores = self._iou(scores)
            if options.return_single_mask:  # select before upscaling, so that only one mask is upscaled
                best = self._best(scores)
                maps, scores = g.op("Gather", maps, best, axis=0), g.op("Gather", scores, best, axis=1)
            return self._upscaled(image, maps, self.num_masks), scores
        low = self._upscaled(image, maps, NUM_MASKS)
        if options.use_stability_score:
            scores = self._stability(low)
        else:
            correction = mask_statistics_head(
                g, self.decoder.part("mask_statistics_head"), low, num_masks=NUM_MASKS, side=4 * self.grid
            )
            scores = self._iou(g.op("Add", scores, correction))
        if options.return_single_mask:
            best = self._best(scores)
            low, scores = g.op("Gather", low, best, axis=1), g.op("Gather", scores, best, axis=1)
        return low, scores

    def _iou(self, scores: str) -> str:
        return self.g.op("Sigmoid", scores) if self.iou_sigmoid else scores

    def _perceptron(self, heads: list[Weights], x: str) -> str:
        """Write MLPs in parallel, one row each."""
        g = self.g
        for layer in range(3):
            weight = stacked(heads, f"layers.{layer}.weight").transpose(1, 2)
            x = g.op("Add", g.op("MatMul", x, weight), stacked(heads, f"layers.{layer}.bias")[:, None])
            x = g.op("Relu", x) if layer < 2 else x
        return x

    def _best(self, scores: str) -> str:
        g = self.g
        points = g.op("Cast", g.slice(g.op("Shape", "point_labels"), 1, 2, axis=0), to=TensorProto.FLOAT)
        first = np.eye(1, NUM_MASKS, dtype=np.float32) * FORBIDDEN
        weighted = g.op("Add", scores, g.op("Mul", g.op("Sub", points, np.float32(AMBIGUOUS_BELOW)), first))
        return g.op("ArgMax", weighted, axis=1, keepdims=0)

    def _upscaled(self, image: str, maps: str, num_masks: int) -> str:
        c = self.channels
        details = [self._channels(c, 2 * c), self._channels(2 * c, 4 * c)] if self.embedding_channels > c else []
        upscaler = MaskUpscaler(self.g, self.decoder.part("output_upscaling"), self.grid, c)
        return upscaler.write(image, details, maps, num_masks)

    def _stability(self, masks: str) -> str:
        """Write the IoU of the masks cut at logits 1 and -1 (utils/amg.py); 0 for masks with no logit above -1."""
        union = self.g.op("Max", self._area(masks, -1.0), np.float32(1))
        return self.g.op("Div", self._area(masks, 1.0), union)

    def _area(self, masks: str, threshold: float) -> str:
        """Write the number of pixels above a threshold, 1 x M; rows are summed first, as a float is exact only up to 2^24."""
        g = self.g
        above = g.op("Cast", g.op("Greater", masks, np.float32(threshold)), to=TensorProto.FLOAT)
        rows = g.op("Cast", g.op("ReduceSum", above, integers(3), keepdims=0), to=TensorProto.DOUBLE)
        return g.op("Cast", g.op("ReduceSum", rows, integers(2), keepdims=0), to=TensorProto.FLOAT)

    def _extra_metrics(self, masks: str) -> dict[str, onnx.ValueInfoProto]:
        self.g.op("Identity", self._stability(masks), name="stability_scores")
        self.g.op("Cast", self._area(masks, 0.0), name="areas", to=TensorProto.INT64)
        return {
            "stability_scores": info("stability_scores", 1, self.num_masks),
            "areas": info("areas", 1, self.num_masks, kind=TensorProto.INT64),
        }
