"""The two-way transformer as an ONNX graph for one prompt (paper, section A; parameters as in model/transformer.py).

T tokens, L image tokens, C channels, n heads of d channels. A click has 7 tokens against 4,096 of the image, so the cross
attentions project the tokens twice rather than the image once: `q . (W x) = (q W) . x`, exact up to rounding.
This form was the fastest in onnxruntime; a low-rank image stream, which is faster for many prompts, is slower for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sam_train.inference.export.graph import Graph, Weights

TOKEN_NORM_EPS = 1e-5


@dataclass(frozen=True)
class OnnxTransformer:
    """Writes the two-way transformer into `graph`. length: L; positions: name of the L x C encoding of the image tokens."""

    graph: Graph
    weights: Weights
    heads: int
    depth: int
    length: int
    positions: str

    def write(self, tokens: str, image: str, output_tokens: Tensor) -> tuple[str, str]:
        """Return the names of the transformed output tokens (o x C) and image tokens (L x C).

        tokens: T x C, of which the first o are `output_tokens`; image: L x C.
        """
        g, queries = self.graph, tokens
        keys = g.op("Add", image, self.positions)
        for i in range(self.depth):
            queries, image = self._block(self.weights.part(f"layers.{i}"), queries, tokens, image, keys, first=i == 0)
            keys = g.op("Add", image, self.positions)
        # Only the output tokens attend in the last attention: the results of the prompt tokens are not used.
        queries = g.slice(queries, 0, len(output_tokens), axis=0)
        final = self.weights.part("final_attn_token_to_image")
        attended = self._token_to_image(final, g.op("Add", queries, output_tokens), keys, image)
        return g.layer_norm(g.op("Add", queries, attended), self.weights.part("norm_final_attn"), TOKEN_NORM_EPS), image

    def _block(self, w: Weights, queries: str, tokens: str, image: str, keys: str, *, first: bool) -> tuple[str, str]:
        g = self.graph

        def norm(index: int, x: str) -> str:
            return g.layer_norm(x, w.part(f"norm{index}"), TOKEN_NORM_EPS)

        def with_pe(x: str) -> str:
            return g.op("Add", x, tokens)

        if first:  # without positions and residual, as released
            queries = norm(1, self._self_attention(w.part("self_attn"), queries, queries))
        else:
            queries = norm(1, g.op("Add", queries, self._self_attention(w.part("self_attn"), with_pe(queries), queries)))
        attended = self._token_to_image(w.part("cross_attn_token_to_image"), with_pe(queries), keys, image)
        queries = norm(2, g.op("Add", queries, attended))
        queries = norm(3, g.op("Add", queries, self._mlp(w.part("mlp"), queries)))
        return queries, norm(4, self._image_to_token(w.part("cross_attn_image_to_token"), image, keys, with_pe(queries), queries))

    def _mlp(self, w: Weights, x: str) -> str:
        hidden = self.graph.op("Relu", self.graph.linear(x, w["lin1.weight"], w["lin1.bias"]))
        return self.graph.linear(hidden, w["lin2.weight"], w["lin2.bias"])

    def _self_attention(self, w: Weights, queries_and_keys: str, values: str) -> str:
        g, width = self.graph, len(w["q_proj.weight"])
        q, k = self._projected(w, "q_proj", queries_and_keys, scaled=True), self._projected(w, "k_proj", queries_and_keys)
        scores = g.op("MatMul", q, g.transpose(k, 0, 2, 1))
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), self._projected(w, "v_proj", values))
        return g.linear(g.reshape(g.transpose(mixed, 1, 0, 2), -1, width), w["out_proj.weight"], w["out_proj.bias"])

    def _token_to_image(self, w: Weights, tokens: str, keys: str, image: str) -> str:
        """Write the attention of tokens to the image, t x C."""
        g, width, channels = self.graph, *w["k_proj.weight"].shape
        # The bias of k_proj adds the same to all scores of a query, and softmax is invariant to it.
        folded = self._folded(self._projected(w, "q_proj", tokens, scaled=True), w["k_proj.weight"])
        scores = g.op("Gemm", folded, keys, transB=1)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), image)
        values = g.op("MatMul", g.reshape(mixed, self.heads, -1, channels), self._by_head(w["v_proj.weight"]).transpose(1, 2))
        read = g.reshape(g.transpose(values, 1, 0, 2), -1, width)
        # The attention weights of a query sum to 1, so the bias of v_proj passes through unchanged.
        return g.linear(read, w["out_proj.weight"], w["out_proj.bias"] + w["out_proj.weight"] @ w["v_proj.bias"])

    def _image_to_token(self, w: Weights, image: str, queries: str, keys: str, values: str) -> str:
        """Write the image tokens plus their attention to the prompt tokens, L x C."""
        g, channels = self.graph, len(w["out_proj.weight"])
        k = self._projected(w, "k_proj", keys, scaled=True)
        bias = g.op("MatMul", k, w["q_proj.bias"].reshape(self.heads, -1, 1))
        scores = g.op("Gemm", queries, self._folded(k, w["q_proj.weight"]), g.reshape(bias, -1), transB=1)
        by_head = g.op("Softmax", g.reshape(scores, self.length * self.heads, -1), axis=-1)
        v = self._projected(w, "v_proj", values)
        read = g.op("MatMul", v, self._by_head(w["out_proj.weight"].T))
        # The attention weights of each head sum to 1, so 1 / heads of the bias of out_proj on every value adds up to the bias.
        read = g.op("Add", read, w["out_proj.bias"] / self.heads)
        return g.op("Gemm", g.reshape(by_head, self.length, -1), g.reshape(read, -1, channels), image)

    def _projected(self, w: Weights, name: str, x: str, *, scaled: bool = False) -> str:
        """Write a projection of tokens by heads, n x t x d, divided by the square root of d if `scaled`."""
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        d = len(weight) // self.heads
        scale = d**-0.5 if scaled else 1.0
        rows = self.graph.linear(x, weight * scale, bias * scale)
        return self.graph.transpose(self.graph.reshape(rows, -1, self.heads, d), 1, 0, 2)

    def _folded(self, x: str, weight: Tensor) -> str:
        """Multiply `x` (n x t x d) by the transpose of a projection, to (n t) x C, so that image tokens stay unprojected."""
        folded = self.graph.op("MatMul", x, self._by_head(weight))
        return self.graph.reshape(folded, -1, weight.shape[1])

    def _by_head(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.heads, -1))
