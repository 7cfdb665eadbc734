"""Export to images with their masks drawn on them, for inspection in any image viewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from io import BytesIO

from PIL import Image

from sam_train.errors import ConfigError
from sam_train.shards.drawing import OPACITY, draw_masks
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.jpeg import decode_jpeg
from sam_train.shards.tar_members import Sample


def export_overlays(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str], *, opacity: float = OPACITY) -> None:
    """Write the folders images and overlays, with one PNG per image that shows its masks.

    An overlay has the size of its image. The colour of a mask depends on its index in the record; smaller masks are on top of
    larger ones. An image without masks has an overlay too, and is counted as "image_without_masks".

    One image is in memory at a time.

    Args:
        opacity: Opacity of the inside of a mask, from 0 (borders only) to 1.

    Raises:
        ConfigError: The opacity is out of range.
        SkipSampleError: A JPEG does not decode.
        ShardError: An RLE does not have the size of its image.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"--opacity is {opacity}: expected 0 (borders only) to 1")
    for sample in samples:
        record = sample.record
        name = folder.add_image(record, sample.jpeg)
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=record.key)
        stream = BytesIO()
        # Higher levels take five times as long and make photographs hardly smaller.
        Image.fromarray(draw_masks(image, record, shard=sample.shard, opacity=opacity)).save(stream, "PNG", compress_level=1)
        folder.write(f"overlays/{name}.png", stream.getvalue())
        counts.update([] if record.masks else ["image_without_masks"])
