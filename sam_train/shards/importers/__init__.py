"""Data sets to shards: `sam-data import KIND ...`.

An importer is one generator that yields `(ImageRecord, JPEG bytes)` in an order that depends on its inputs alone. To add
one, write it in a module here and name it in `IMPORTERS`; the command makes its options of the signature:

    def import_label_maps(
        images: Path, labels: Path, *, min_area: int = 1, counts: Counter[str] | None = None
    ) -> Iterator[tuple[ImageRecord, bytes]]

A `Path` without default becomes a required `--images DIR`, an `int`, `float` or `str` with a default an optional
`--min-area N`. What the importer leaves out on purpose it counts by name in `counts`, which ends up in the manifests;
what is wrong in the data set is a `ShardError` that names the file. Use `sam_train.shards.pictures.load_picture` for
pictures and `sam_train.shards.keys` for keys and image ids.
"""

from collections.abc import Callable, Iterator

from sam_train.records import ImageRecord
from sam_train.shards.importers.label_maps import import_label_maps

IMPORTERS: dict[str, Callable[..., Iterator[tuple[ImageRecord, bytes]]]] = {"label_maps": import_label_maps}
"""Kind, as the command line has it -> the generator."""

__all__ = ["IMPORTERS", "import_label_maps"]
