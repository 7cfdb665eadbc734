"""The device on which a model computes."""

from __future__ import annotations

import torch

from sam_train.errors import ConfigError


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that is meant; "auto" is the first of cuda, mps and cpu that is available.

    Raises ConfigError for a name that torch does not know, an unavailable device, and "meta", which holds no values.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:  # torch raises either for an unavailable device
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device} is unavailable on this machine ({reason}): use device=cpu or device=auto") from error
    if resolved.type == "meta":
        raise ConfigError("device=meta holds no values: use device=cpu or device=auto")
    return resolved
