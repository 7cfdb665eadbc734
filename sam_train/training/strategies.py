"""How several processes share a run: who starts them, who keeps what, what a checkpoint is made of.

Whatever the strategy, a step adds up its gradients in training/gradients.py, and a checkpoint is one file with everything in
it, the same as that of one process, or (fsdp2, if asked) its parts in a folder: in either case a run goes on with another
strategy, and on another number of devices.

All of them were run with two processes on a CPU (gloo); no GPU has run them yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from fairscale.optim.oss import OSS
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from typing_extensions import override

from sam_train.errors import ConfigError
from sam_train.model.image_encoder import ImageEncoder
from sam_train.training.sharded_checkpoint import FOLDER, is_in_shares, map_tensors, save_in_shares, with_tensors


class Replicated(DDPStrategy):
    """Each process has the whole model and the whole optimiser.

    Lightning's DDP starts and places the processes. The model is not wrapped in DistributedDataParallel, which would sum
    gradients in each of a step's many backward passes; `sum_gradients` does it once.
    """

    @override
    def configure_ddp(self) -> None:
        """Nothing is wrapped."""

    whole_weights: dict[str, Tensor] | None = None
    """After training, on the first process: the model's weights, where the module itself does not hold them."""

    def make_optimizer(self, kind: type[Optimizer], groups: Iterable[dict[str, Any]], **values: Any) -> Optimizer:
        """One of `kind`, or what stands for it."""
        return kind(groups, **values)


class ShardedOptimizer(Replicated):
    """Each process has the whole model and its share of the optimiser's state (fairscale's OSS, ZeRO's first stage).

    A process steps its share of the parameters and sends them to the others. fairscale's ShardedDataParallel, which would
    shard gradients too, sums them in each backward pass and is not used.
    """

    @override
    def make_optimizer(self, kind: type[Optimizer], groups: Iterable[dict[str, Any]], **values: Any) -> Optimizer:
        """One in shares."""
        return OSS(groups, optim=kind, **values)


class ShardedEncoder(Replicated):
    """The ViT image encoder, its gradients and its optimiser state in shares (FSDP2), block by block; the rest on each device.

    Prompt encoder and mask decoder have four million parameters and are backpropagated in every round: gathering them anew
    each time would cost more than it saves. The encoder's one backward pass sums its gradients itself.
    Raises ConfigError for another encoder.

    sharded_checkpoints: each process writes its share into a folder beside last.ckpt, and reads no more of the optimiser's state
        than that, instead of handing all to the first process: where that has not the memory for a whole checkpoint, or not the
        time. `sam-export checkpoint=runs/NAME` makes one file of it.
    """

    def __init__(self, *, sharded_checkpoints: bool = False) -> None:
        super().__init__()
        self.sharded_checkpoints = sharded_checkpoints

    @override
    def configure_ddp(self) -> None:
        """Shard the encoder. Its gradients are sums, as those of the rest are."""
        encoder = self._sam().image_encoder
        if not isinstance(encoder, ImageEncoder):
            raise ConfigError(f"strategy=fsdp2 shards the blocks of a ViT, and {type(encoder).__name__} has none: take ddp")
        for block in encoder.blocks:
            fully_shard(block)
        fully_shard(encoder)
        for part in self._sharded():
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # a premultiplied sum is nothing that gloo knows

    @override
    def on_validation_start(self) -> None:
        """Whole weights: processes with fewer validation batches than others would be waited for in vain."""
        for part in self._sharded():
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    @override
    def on_validation_end(self) -> None:
        """Shares again."""
        for part in self._sharded():
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)

    @override
    def on_train_end(self) -> None:
        """Keep whole weights for model.pt: the module itself stays in shares."""
        self.whole_weights = {name: self._whole(value) for name, value in self._sam().state_dict().items()}

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        """In shares, or gathered; every process must come here."""
        if self.sharded_checkpoints:
            folder = f"step-{checkpoint['global_step']}-{self.broadcast(token_hex(4))}"
            save_in_shares(checkpoint, Path(filepath), folder, is_first=self.is_global_zero)
        else:
            whole = map_tensors(checkpoint, lambda place, tensor: self._whole(tensor))
            super().save_checkpoint(whole, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Of one in shares, the optimiser's state waits for `load_optimizer_state_dict`."""
        path = Path(checkpoint_path)
        document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not is_in_shares(document):
            return document
        waiting, self._path = {name: document.pop(name) for name in ("optimizer_states", FOLDER)}, path
        return {**with_tensors(document, path, waiting[FOLDER]), **waiting}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shares of a whole state, or the shares themselves."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            like = partial(share_to_read_into, parameters)
            document = with_tensors(saved, self._path, checkpoint[FOLDER], like) if is_in_shares(checkpoint) else saved
            state = {i: {n: share_of(v, parameters[i]) for n, v in values.items()} for i, values in document["state"].items()}
            optimizer.load_state_dict({**document, "state": state})

    def _whole(self, value: Any) -> Any:
        """A share gathered; an empty tensor in the processes that write nothing."""
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)

    def _sam(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.model

    def _sharded(self) -> list[FSDPModule]:
        return [part for part in self._sam().image_encoder.modules() if isinstance(part, FSDPModule)]


def share_of(value: Any, parameter: Tensor) -> Any:
    """This process's share of a moment or mean of `parameter`; step counts and what belongs to whole parameters stay whole."""
    is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == parameter.shape
    if not is_whole or not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def share_to_read_into(parameters: Sequence[Tensor], place: str) -> Tensor | None:
    """Room for this process's share of a moment, by its place in a checkpoint: .../state/<number of the parameter>/<name>."""
    *_, number, name = place.split("/")
    parameter = parameters[int(number)]
    return torch.zeros_like(parameter) if isinstance(parameter, DTensor) and name != "step" else None
