"""LoRA in the image encoder (Hu et al. 2021): adds a learned low-rank term (alpha / rank) B A x to a frozen linear layer W x.

The adapter layers are those of peft. After training they are merged, W + (alpha / rank) B A in place of W, which gives a model
without adapters. B starts at zero, so the initial model is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sam_train.errors import ConfigError, install_extra
from sam_train.model.sam import Sam


class Lora:
    """Injects LoRA adapters into linear layers of an image encoder, and merges them.

    rank: rank of the learned update.
    alpha: the update is multiplied by alpha / rank, so that the learning rate need not change with the rank.
    targets: linear layers to adapt, by the last components of their names: "qkv" and "proj" are those of attention, in a ViT
        and in MobileSAM; "lin1" and "lin2" those of a ViT's MLP, "fc1" and "fc2" those of MobileSAM's.
    Raises ValueError if rank or alpha is too small or targets is empty.
    """

    def __init__(self, *, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("qkv", "proj")) -> None:
        if rank < 1 or alpha <= 0 or not targets:
            raise ValueError(
                f"expected rank >= 1, alpha > 0 and at least one target, got rank {rank}, alpha {alpha}, targets {targets}"
            )
        self.rank, self.alpha, self.targets = rank, alpha, tuple(targets)

    def inject(self, model: Sam) -> None:
        """Freeze the image encoder and add trainable adapters, in place. The weights of a layer W are then named W.base_layer.

        Raises ConfigError if a target matches no linear layer or peft is not installed.
        """
        peft, encoder = _peft(), model.image_encoder
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self._layers(encoder))
        peft.inject_adapter_in_model(config, encoder)

    def merge(self, model: Sam) -> None:
        """Merge the adapters that `inject` added into the weights, in place, and remove them."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        encoder = model.image_encoder
        for name, layer in list(encoder.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
                owner, _, attribute = name.rpartition(".")
                setattr(encoder.get_submodule(owner), attribute, layer.get_base_layer())

    def _layers(self, encoder: nn.Module) -> list[str]:
        """Return the full names of the target layers; to peft, "proj" alone would also match the patch convolution."""
        linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        for target in self.targets:
            if not any(_has_suffix(name, target) for name in linear):
                suffixes = sorted({name.rpartition(".")[2] for name in linear})
                raise ConfigError(
                    f"lora.targets: this image encoder has no linear layer {target!r}; it has {', '.join(suffixes)}"
                )
        return [name for name in linear if any(_has_suffix(name, target) for target in self.targets)]


def _has_suffix(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ConfigError(f"lora needs {error.name}: {install_extra('lora')}") from error
    return peft
