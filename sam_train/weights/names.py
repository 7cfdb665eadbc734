"""The registry of weights that have a name, and the path that a checkpoint argument refers to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sam_train.errors import CheckpointError
from sam_train.weights.download import cache_folder, download

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWeights:
    """Weights that are a file of this package.

    file: name of the file in the folder of `sam_train.weights`.
    description: what the weights are, for help and messages.
    """

    file: str
    description: str

    def locate(self, name: str) -> Path:
        """Return the path of the file. Raises CheckpointError if this installation lacks it."""
        path = _FOLDER / self.file
        if not path.is_file():
            raise CheckpointError(
                f"the weights {name!r} are not part of this installation: {path} is missing; install the package again, or give "
                "a file: the model.pt of a run or released weights"
            )
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadedWeights:
    """Weights that are downloaded from their makers' address on first use.

    url: address. num_bytes, sha256: size and hash of the file, with which a download is compared.
    licence: name of the licence and its address.
    description: what the weights are, for help and messages.
    """

    url: str
    num_bytes: int
    sha256: str
    licence: str
    description: str

    def locate(self, name: str) -> Path:
        """Return the path of the file in the cache, after downloading it if needed. Raises the errors of `download`."""
        path = cache_folder() / self.url.rpartition("/")[2]
        notice = f"{name}: {self.description}, {self.num_bytes / 1e6:,.0f} MB, licence {self.licence}"
        return download(self.url, path, sha256=self.sha256, num_bytes=self.num_bytes, notice=notice)


_META = "https://dl.fbaipublicfiles.com/segment_anything"
_META_LICENCE = "Apache-2.0 (https://github.com/facebookresearch/segment-anything/blob/main/LICENSE)"

NAMED_WEIGHTS: Mapping[str, PackagedWeights | DownloadedWeights] = {
    "starter": PackagedWeights(file="starter.safetensors", description="a small model that is part of this package"),
    "mobile_sam": DownloadedWeights(
        url="https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
        num_bytes=40_728_226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        licence="Apache-2.0 (https://github.com/ChaoningZhang/MobileSAM/blob/master/LICENSE)",
        description="MobileSAM with a TinyViT encoder, 9.8 million parameters",
    ),
    "sam_vit_b": DownloadedWeights(
        url=f"{_META}/sam_vit_b_01ec64.pth",
        num_bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        licence=_META_LICENCE,
        description="Segment Anything with a ViT-B encoder, 94 million parameters",
    ),
    "sam_vit_l": DownloadedWeights(
        url=f"{_META}/sam_vit_l_0b3195.pth",
        num_bytes=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        licence=_META_LICENCE,
        description="Segment Anything with a ViT-L encoder, 312 million parameters",
    ),
    "sam_vit_h": DownloadedWeights(
        url=f"{_META}/sam_vit_h_4b8939.pth",
        num_bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        licence=_META_LICENCE,
        description="Segment Anything with a ViT-H encoder, 641 million parameters",
    ),
}
"""Weights by name. Sizes and hashes are those that independent projects published for the files at these addresses."""


def is_weights_name(checkpoint: str | os.PathLike[str]) -> bool:
    """Return whether a checkpoint argument is a registered name. A `Path` never is: a file of that name is `./NAME` as a text."""
    return isinstance(checkpoint, str) and checkpoint in NAMED_WEIGHTS


def resolve_checkpoint(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the path that a checkpoint argument refers to: that of the named weights, or the argument as a path.

    Named weights are downloaded on first use. "~" is expanded. Whether a path exists is not checked. Raises CheckpointError if
    named weights are unavailable.
    """
    if isinstance(checkpoint, str) and checkpoint in NAMED_WEIGHTS:
        return NAMED_WEIGHTS[checkpoint].locate(checkpoint)
    return Path(checkpoint).expanduser()
