"""Distributed strategies: DDP, DDP with a sharded optimiser (fairscale OSS), DDP with a sharded image encoder (FSDP2).

With every strategy, a step sums its gradients in training/gradients.py. A checkpoint is one file with the full tensors, equal
to that of a single process, or optionally (fsdp2) sharded into a folder. In both cases a run can resume with another strategy
and on another number of devices.

All strategies were run with two processes on a CPU (gloo); none has been run on GPUs yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from typing_extensions import override

from sam_train.checkpoint.run_checkpoint import upgrade_callback_names
from sam_train.checkpoint.sharded import TENSOR_FOLDER_KEY, is_sharded, load_sharded_tensors
from sam_train.errors import ConfigError
from sam_train.model.image_encoder import ImageEncoder
from sam_train.training.checkpoint_io import map_tensors, save_sharded


class SamDDPStrategy(DDPStrategy):
    """Data parallelism in which each process holds the full model and the full optimiser state.

    Lightning's DDP launches the processes and assigns their devices. The model is not wrapped in DistributedDataParallel, which
    would reduce gradients in each of a step's many backward passes; `sum_gradients` reduces them once per step.
    """

    full_weights: dict[str, Tensor] | None = None
    """The model's full state_dict after training, on rank 0, if the module itself holds only shards; None otherwise."""

    @override
    def configure_ddp(self) -> None:
        """Leave the model unwrapped."""

    def build_optimizer(self, kind: type[Optimizer], groups: Iterable[dict[str, Any]], **values: Any) -> Optimizer:
        """Return an optimiser of class `kind`, or one that shards its state."""
        return kind(groups, **values)


class FairscaleOSSStrategy(SamDDPStrategy):
    """Data parallelism in which each process holds the full model and a shard of the optimiser state (fairscale OSS, ZeRO-1).

    Each process steps its shard of the parameters and broadcasts them. fairscale's ShardedDataParallel, which would shard
    gradients too, is not used: it reduces them in each backward pass.
    """

    @override
    def build_optimizer(self, kind: type[Optimizer], groups: Iterable[dict[str, Any]], **values: Any) -> Optimizer:
        """Return fairscale's OSS around an optimiser of class `kind`."""
        from fairscale.optim.oss import OSS  # imported here: no other strategy needs fairscale

        return OSS(groups, optim=kind, **values)


class EncoderFSDP2Strategy(SamDDPStrategy):
    """FSDP2 of the ViT image encoder (weights, gradients and optimiser state, block by block), data parallelism for the rest.

    The prompt encoder and the mask decoder have four million parameters and are backpropagated in every round: gathering them
    in each round would cost more than sharding them saves. The encoder's single backward pass sums its own gradients.
    Raises ConfigError if the image encoder is not a ViT.

    sharded_checkpoints: each process writes its shard into a folder beside last.ckpt and, on resume, reads only its shard of
        the optimiser state. Otherwise rank 0 gathers everything, which needs memory for a full checkpoint there and takes
        longer. `sam-export checkpoint=runs/NAME` converts a sharded checkpoint to one file.
    """

    def __init__(self, *, sharded_checkpoints: bool = False) -> None:
        super().__init__()
        self.sharded_checkpoints = sharded_checkpoints

    @override
    def configure_ddp(self) -> None:
        """Shard the encoder. Its gradients are sums over the processes, like those of the other parameters."""
        encoder = self._sam().image_encoder
        if not isinstance(encoder, ImageEncoder):
            raise ConfigError(
                f"strategy=fsdp2 shards the blocks of a ViT, but the image encoder is {type(encoder).__name__}: set strategy=ddp"
            )
        for block in encoder.blocks:
            fully_shard(block)
        fully_shard(encoder)
        for module in self._fsdp_modules():
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo does not support the premultiplied sum

    @override
    def on_validation_start(self) -> None:
        """Unshard the weights for the whole validation: processes may have different numbers of batches, and a gather in each
        forward pass would deadlock."""
        for module in self._fsdp_modules():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    @override
    def on_validation_end(self) -> None:
        """Shard the weights again."""
        for module in self._fsdp_modules():
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)

    @override
    def on_train_end(self) -> None:
        """Gather `full_weights` for model.pt; the module itself stays sharded."""
        self.full_weights = {name: self._gather(value) for name, value in self._sam().state_dict().items()}

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, sharded or gathered. Every process must call it."""
        if self.sharded_checkpoints:
            folder = f"step-{checkpoint['global_step']}-{self.broadcast(token_hex(4))}"
            save_sharded(checkpoint, Path(filepath), folder, is_rank_zero=self.is_global_zero)
        else:
            full = map_tensors(checkpoint, lambda path, tensor: self._gather(tensor))
            super().save_checkpoint(full, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint. The optimiser state of a sharded one is read later, by `load_optimizer_state_dict`.

        Raises CheckpointError if the folder of a sharded checkpoint is missing or incomplete.
        """
        path = Path(checkpoint_path)
        document: dict[str, Any] = upgrade_callback_names(torch.load(path, map_location="cpu", weights_only=True))
        if not is_sharded(document):
            return document
        deferred, self._path = {name: document.pop(name) for name in ("optimizer_states", TENSOR_FOLDER_KEY)}, path
        return {**load_sharded_tensors(document, path, deferred[TENSOR_FOLDER_KEY]), **deferred}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shard of the optimiser state, from a full or a sharded checkpoint."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            document = saved
            if is_sharded(checkpoint):
                make_shard = partial(empty_shard_for, parameters)
                document = load_sharded_tensors(saved, self._path, checkpoint[TENSOR_FOLDER_KEY], make_shard)
            state = {i: {n: shard_like(v, parameters[i]) for n, v in values.items()} for i, values in document["state"].items()}
            optimizer.load_state_dict({**document, "state": state})

    def _gather(self, value: Any) -> Any:
        """Return the full tensor of a shard on rank 0, and an empty tensor in the processes that write nothing."""
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if self.is_global_zero else full.new_empty(0)

    def _sam(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.model

    def _fsdp_modules(self) -> list[FSDPModule]:
        return [module for module in self._sam().image_encoder.modules() if isinstance(module, FSDPModule)]


def shard_like(value: Any, parameter: Tensor) -> Any:
    """Return this process's shard of an optimiser moment or EMA of `parameter`.

    Step counts, and the values of parameters that are not sharded, are returned as they are.
    """
    is_full = isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == parameter.shape
    if not is_full or not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def empty_shard_for(parameters: Sequence[Tensor], tensor_path: str) -> Tensor | None:
    """Return a tensor to read this process's shard of an optimiser moment into, or None to read the full tensor.

    tensor_path: path of the moment in the checkpoint, .../state/<index of the parameter>/<name>.
    """
    *_, index, name = tensor_path.split("/")
    parameter = parameters[int(index)]
    return torch.zeros_like(parameter) if isinstance(parameter, DTensor) and name != "step" else None
