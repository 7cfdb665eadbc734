"""LoRA in the image encoder (Hu et al. 2021): beside a frozen linear map W x, a learnt (alpha / rank) B A x of low rank.

The layers are peft's. What was trained so is handed on merged, W + (alpha / rank) B A in the place of W: a plain model, which
everything else takes. B starts at zero, so training starts from the model as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sam_train.errors import ConfigError
from sam_train.model.sam import Sam


class Lora:
    """Puts adapters beside linear layers of an image encoder, and merges them.

    rank: of the learnt difference.
    alpha: the difference is multiplied by alpha / rank, so that another rank does not want another learning rate.
    targets: which linear layers, by the last words of their names: "qkv" and "proj" are those of attention, in a ViT and in
        MobileSAM; "lin1" and "lin2" those of a ViT's feed-forward, "fc1" and "fc2" of MobileSAM's.
    Raises ValueError for numbers that are too small and for no targets.
    """

    def __init__(self, *, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("qkv", "proj")) -> None:
        if rank < 1 or alpha <= 0 or not targets:
            raise ValueError(f"expected rank >= 1, alpha > 0 and a target, got rank {rank}, alpha {alpha}, targets {targets}")
        self.rank, self.alpha, self.targets = rank, alpha, tuple(targets)

    def inject(self, model: Sam) -> None:
        """Freeze the image encoder but for new adapters, in place. The weights of a layer W are then named W.base_layer.

        Raises ConfigError for a target that no linear layer is, and without peft.
        """
        peft, encoder = _peft(), model.image_encoder
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self._layers(encoder))
        peft.inject_adapter_in_model(config, encoder)

    def merge(self, model: Sam) -> None:
        """Add the adapters of a model that `inject` changed to its weights, in place, and remove them."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        encoder = model.image_encoder
        for name, layer in list(encoder.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
                owner, _, attribute = name.rpartition(".")
                setattr(encoder.get_submodule(owner), attribute, layer.get_base_layer())

    def _layers(self, encoder: nn.Module) -> list[str]:
        """Whole names: "proj" alone would mean the convolution of the patches too."""
        linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        for target in self.targets:
            if not any(_ends_in(name, target) for name in linear):
                there = sorted({name.rpartition(".")[2] for name in linear})
                raise ConfigError(f"lora.targets: this image encoder has no linear layer {target!r}, but {', '.join(there)}")
        return [name for name in linear if any(_ends_in(name, target) for target in self.targets)]


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ConfigError(f"lora needs {error.name}: pip install 'sam-train[lora]'") from error
    return peft
