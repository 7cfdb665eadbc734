"""Muon for the weight matrices of linear layers and AdamW for all other parameters, in one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) updates a matrix by its orthogonalized momentum, whose
singular values are all near 1, so that rare directions move as far as common ones. torch.optim.Muon accepts only matrices, so a
run would need two optimizers, and multiplies in bfloat16, which few CPUs support; tests compare this implementation with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of the iteration s -> a s + b s^3 + c s^5 on singular values."""
NEWTON_SCHULZ_STEPS = 5
"""Number of iterations: five map any singular value in (0.01, 1) into (0.68, 1.13)."""


class Muon(AdamW):
    """AdamW that updates parameter groups with `orthogonal: True` by Muon instead.

    momentum: Nesterov momentum of Muon. Weight decay is decoupled, as in AdamW, for both.
    Raises ValueError if a group with `orthogonal: True` holds tensors that are not matrices.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), momentum: float = 0.95
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        self.momentum = momentum
        for group in self.param_groups:
            if group.setdefault("orthogonal", False) and any(p.ndim != 2 for p in group["params"]):
                shapes = sorted({tuple(p.shape) for p in group["params"] if p.ndim != 2})
                raise ValueError(f"a group with orthogonal=True holds tensors of {shapes}: expected matrices only")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, group["lr"], group["weight_decay"])
        return loss

    def _step_matrix(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
            state["step"] = torch.tensor(0.0)  # AdamW expects this key in every state that it loads
        state["step"] += 1
        state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        direction = orthogonalize(gradient.lerp(state["momentum_buffer"], self.momentum))
        parameter.mul_(1 - lr * weight_decay)
        # Scale the update to the typical size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
        parameter.add_(direction, alpha=-0.2 * math.sqrt(max(parameter.shape)) * lr)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix U S V^T with its singular values S moved near 1. A sharded matrix (FSDP2) is gathered and resharded."""
    if isinstance(matrix, DTensor):
        return distribute_tensor(orthogonalize(matrix.full_tensor()), matrix.device_mesh, matrix.placements)
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
