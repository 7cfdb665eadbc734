"""Shards to pictures with their masks drawn on them, to look through in any viewer."""

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
    """Samples to out/images and out/overlays/NAME.png of the same size, one image in memory at a time.

    A mask has a colour of its own, by its place in the record, `opacity` (0 to 1) of it inside and all of it on the border;
    smaller masks lie on larger ones. An image without masks has its overlay too, counted as "image_without_masks".

    Raises ConfigError for an opacity out of range, SkipSampleError for a JPEG that does not decode, ShardError for an RLE that
    does not fit its image.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"--opacity is {opacity}: expected 0 (borders alone) to 1")
    for sample in samples:
        record = sample.record
        name = folder.add_image(record, sample.jpeg)
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=record.key)
        stream = BytesIO()
        # Level 1: photographs hardly get smaller by more, and it takes five times as long.
        Image.fromarray(draw_masks(image, record, shard=sample.shard, opacity=opacity)).save(stream, "PNG", compress_level=1)
        folder.write(f"overlays/{name}.png", stream.getvalue())
        counts.update([] if record.masks else ["image_without_masks"])
