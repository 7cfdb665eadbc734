"""Export of finished images as SA-1B shards; the provenance of a mask states its annotator, origin, prompts and cost.

The store records which images a shard holds before the shard is written, so an export that restarts after a crash writes the
same shards.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.image_cache import HTTP_GONE, CachedImage, ImageCache
from data_engine.ledger import Counts
from data_engine.privacy import Privacy, RedactionAudit
from data_engine.structures import MASK_IDS_PER_IMAGE
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.rle import rle_to_box_xywh
from sam_train.shards import write_shard
from sam_train.shards.manifest import manifest_path
from sam_train.shards.take_down import TAKEN_DOWN

_SELECT_FINISHED = """SELECT i.key FROM images i JOIN tasks t ON t.image = i.key WHERE i.shard IS NULL
    GROUP BY i.key HAVING max(t.state IN ({finished})) AND NOT max(t.state IN ({unfinished})) ORDER BY i.position"""


class ShardExporter:
    """Writes shards `sa_web_NNNNNN.tar` into `out`.

    privacy: privacy filter of `images`; its audit is written beside the shards. stage: name of the stage in the provenance.
    reviewed_only: export only images that a reviewer accepted. config: hash of the configuration, for the provenance.
    """

    def __init__(
        self,
        database: Database,
        images: ImageCache,
        out: Path,
        *,
        privacy: Privacy,
        stage: str,
        reviewed_only: bool,
        config: str,
        images_per_shard: int,
    ) -> None:
        self.database, self.images, self.out, self.privacy = database, images, out, privacy
        self.stage, self.reviewed_only, self.config, self.images_per_shard = stage, reviewed_only, config, images_per_shard
        self._finished_states = ["accepted"] if reviewed_only else ["done", "accepted"]

    def write(self, *, include_partial: bool = True) -> list[Path]:
        """Write the finished images that are not exported yet and return the new shards.

        An image is finished when at least one of its passes is and none is open. include_partial: also write a last shard with
        fewer than `images_per_shard` images.
        """
        self._assign_shards(include_partial)
        numbers = self.database.connection.execute("SELECT DISTINCT shard FROM images WHERE shard IS NOT NULL ORDER BY shard")
        paths = [self.out / f"sa_web_{number:06d}.tar" for (number,) in numbers.fetchall()]
        new = [path for path in paths if not manifest_path(path).is_file()]
        for path in new:
            self._write(path, int(path.stem.rpartition("_")[2]))
        return new

    def _assign_shards(self, include_partial: bool) -> None:
        unfinished = ["leased", "sent_back", "queued", *(["done"] if self.reviewed_only else [])]
        query = _SELECT_FINISHED.format(finished=_quoted(self._finished_states), unfinished=_quoted(unfinished))
        with self.database.transaction() as db:
            keys = [row[0] for row in db.execute(query)]
            (first,) = db.execute("SELECT coalesce(max(shard) + 1, 0) FROM images").fetchone()
            for number, start in enumerate(range(0, len(keys), self.images_per_shard), first):
                part = keys[start : start + self.images_per_shard]
                if len(part) == self.images_per_shard or include_partial:
                    db.executemany("UPDATE images SET shard = ? WHERE key = ?", [(number, key) for key in part])

    def _write(self, path: Path, number: int) -> None:
        counts, skipped, audit = Counts(), dict[str, str](), RedactionAudit()
        checkpoints: set[str] = set()
        rows = self.database.connection.execute("SELECT key FROM images WHERE shard = ? ORDER BY position", (number,))
        keys = [row[0] for row in rows]
        samples = []
        for record, image in self._samples(keys, counts, skipped):
            counts.add(self.privacy.counts(image.redacted_boxes))
            audit.add(record, image.redacted_boxes)
            checkpoints |= {mask.provenance.checkpoint for mask in record.masks if mask.provenance}
            samples.append((record, image.jpeg))
        if self.privacy.detectors:
            audit.write(path)
        provenance = {"stage": self.stage, "checkpoint": ",".join(sorted(checkpoints - {""}))}
        provenance |= {"config": self.config, "privacy": self.privacy.identity()}
        write_shard(path, samples, skipped=skipped, counts=dict(sorted(counts.items())), provenance=provenance)

    def _samples(self, keys: Sequence[str], counts: Counts, skipped: dict[str, str]) -> Iterator[tuple[ImageRecord, CachedImage]]:
        """Yield record and image of each key; add images that were taken down meanwhile to `skipped`."""
        finished = _quoted(self._finished_states)
        for key in keys:
            try:
                image = self.images.get(key)
            except HttpError as error:
                if error.status != HTTP_GONE:
                    raise
                skipped[self.images.references[key].origin] = TAKEN_DOWN
                continue
            rows = self.database.connection.execute(
                f"""SELECT * FROM masks WHERE NOT deleted AND origin != 'proposed' AND task = (
                SELECT id FROM tasks WHERE image = ? AND state IN ({finished}) ORDER BY pass LIMIT 1) ORDER BY number""",  # noqa: S608
                (key,),
            ).fetchall()
            masks = [self._record(row, image.image_id, number) for number, row in enumerate(rows)]
            for row in rows:
                counts.add({"clicks": row["clicks"], "strokes": row["strokes"], "seconds": row["seconds"]})
                counts.add({f"masks_{row['origin']}": 1})
            record = ImageRecord(key=key, image_id=image.image_id, width=image.width, height=image.height, masks=masks)
            yield record, image

    def _record(self, row: sqlite3.Row, image_id: int, number: int) -> MaskRecord:
        rle = {"size": [row["height"], row["width"]], "counts": row["counts"]}
        prompts = json.loads(row["prompts"])
        return MaskRecord(
            id=image_id * MASK_IDS_PER_IMAGE + number,
            segmentation=rle,
            bbox=rle_to_box_xywh(rle),
            area=row["area"],
            predicted_iou=row["predicted_iou"],
            stability_score=row["stability_score"],
            crop_box=[0.0, 0.0, float(row["width"]), float(row["height"])],
            point_coords=[prompt[:2] for prompt in prompts[:1]],
            provenance=Provenance(
                stage=self.stage,
                checkpoint=row["checkpoint"],
                annotator=row["annotator"],
                config=self.config,
                prompts=prompts,
                seconds=row["seconds"],
                name=row["name"],
                origin=row["origin"],
                clicks=row["clicks"],
                strokes=row["strokes"],
            ),
        )


def _quoted(states: Sequence[str]) -> str:
    return ", ".join(f"'{state}'" for state in states)
