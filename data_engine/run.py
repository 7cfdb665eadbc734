"""Run one stage of the engine over a source.

    sam-engine stage=fully_automatic source=PHOTOS checkpoint=model.pt out=SHARDS

The source is cut into slices of `images_per_shard` pictures in a fixed order, and each slice becomes one shard, whole
or not at all. Start the same command again and only what is missing is done; another command into the same folder is
refused. At the end `out` holds the shards, their manifests, engine.json (what made them) and ledger.json (what became of
every image).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console

from data_engine.annotators import Work
from data_engine.drivers import run_slices
from data_engine.ledger import Counts, Ledger, read_ledger, write_ledger
from data_engine.sources import Reference, Source, open_source
from data_engine.stages import Stage
from data_engine.structures import Origin, SourceImage
from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.config import build, config_dir, config_hash, to_plain
from sam_train.errors import ConfigError, SkipSample, exit_with_message
from sam_train.files import commit_file
from sam_train.masks import encode_rle, mask_to_box_xywh
from sam_train.model import Sam
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.shards import manifest_path, write_shard


@hydra.main(config_path=config_dir(), config_name="engine", version_base="1.3")
@exit_with_message
def main(cfg: DictConfig) -> None:
    """Console script `sam-engine`."""
    run(cfg)


def run(cfg: DictConfig) -> Ledger:
    """Run the stage as the config says and return the ledger that was also written."""
    for name in ("source", "out"):
        if not cfg[name]:
            raise ConfigError(
                f"sam-engine needs {name}=...: sam-engine stage=fully_automatic source=PHOTOS checkpoint=FILE out=FOLDER"
            )
    for name, least in (("first_image", 0), ("num_images", 1), ("images_per_shard", 1)):
        if not (isinstance(cfg[name], int) and cfg[name] >= least) and not (name == "num_images" and cfg[name] is None):
            raise ConfigError(f"{name} is {cfg[name]}: expected a whole number of at least {least}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    stage: Stage = build(cfg.stage)
    if stage.needs_model and not cfg.checkpoint:
        raise ConfigError(f"stage {stage.name} needs a model: give checkpoint=FILE, for example runs/<name>/model.pt")
    source = open_source(cfg.source)
    references = source.references[cfg.first_image :][: cfg.num_images]
    if not references:
        raise ConfigError(f"{cfg.source} has {len(source.references)} pictures, none at first_image={cfg.first_image}")
    model = load_checkpoint(Path(cfg.checkpoint), cfg.device) if cfg.checkpoint else None
    job = SliceJob(stage, source, model, made_by(cfg, stage), Path(cfg.out))
    job.claim()
    slices = list(enumerate(cut(references, cfg.images_per_shard)))
    left = [(i, part) for i, part in slices if not manifest_path(job.shard(i)).is_file()]
    run_slices(left, job.run, num_images=sum(len(part) for _, part in left), description=stage.name.replace("_", " "))
    ledger = read_ledger(job.out)
    write_ledger(job.out, ledger)
    Console().print(summary(ledger, job.out, source.skipped), highlight=False)
    return ledger


class SliceJob:
    """One stage over the slices of one source into one folder."""

    def __init__(self, stage: Stage, source: Source, model: Sam | None, made_by: dict[str, str], out: Path) -> None:
        self.stage, self.source, self.model, self.made_by, self.out = stage, source, model, made_by, out

    def shard(self, index: int) -> Path:
        """The file of slice `index`."""
        return self.out / f"sa_{index:06d}.tar"

    def claim(self) -> None:
        """Write engine.json, or raise ConfigError if the folder holds shards that something else made."""
        path = self.out / "engine.json"
        if path.is_file():
            there = json.loads(path.read_bytes())
            if there != self.made_by:
                changed = sorted(k for k in {*there, *self.made_by} if there.get(k) != self.made_by.get(k))
                raise ConfigError(f"{self.out} holds shards made with another {', '.join(changed)}: choose another out=")
            return
        if any(self.out.glob("*.tar")):
            raise ConfigError(f"{self.out} holds tars that this stage did not write: choose another out=")
        commit_file(path, (json.dumps(self.made_by, indent=1) + "\n").encode())

    def run(self, slice_: tuple[int, Sequence[Reference]]) -> Iterator[Reference]:
        """Annotate a slice and write its shard; yields after each image. The shard appears after the last one."""
        index, references = slice_
        skipped: dict[str, str] = {}
        counts = Counts()
        samples: list[tuple[ImageRecord, bytes]] = []
        for reference in references:
            try:
                image = self.source.load(reference)
                work = self.stage.annotate(self.model, image)
            except SkipSample as skip:
                skipped[reference.origin] = skip.reason
            else:
                counts.add(work.counts)
                samples.append((self._record(image, work), image.jpeg))
            yield reference
        write_shard(self.shard(index), samples, skipped=skipped, counts=dict(sorted(counts.items())), provenance=self.made_by)

    def _record(self, image: SourceImage, work: Work) -> ImageRecord:
        height, width = image.image.shape[:2]
        masks = [
            MaskRecord(
                # Unique over the corpus as long as an image has fewer than 10,000 masks.
                id=image.image_id * 10_000 + number,
                segmentation=encode_rle(candidate.mask),
                bbox=mask_to_box_xywh(candidate.mask),
                area=int(candidate.mask.sum()),
                predicted_iou=candidate.predicted_iou,
                stability_score=candidate.stability_score,
                crop_box=candidate.crop_box,
                point_coords=candidate.point_coords,
                provenance=Provenance(
                    stage=self.stage.name,
                    checkpoint=self.made_by["checkpoint"],
                    annotator="automatic" if candidate.origin is Origin.GENERATED else self.stage.annotator_name,
                    config=self.made_by["config"],
                    prompts=candidate.prompts,
                    seconds=candidate.seconds,
                ),
            )
            for number, candidate in enumerate(work.masks)
        ]
        return ImageRecord(key=image.key, image_id=image.image_id, width=width, height=height, masks=masks)


def made_by(cfg: DictConfig, stage: Stage) -> dict[str, str]:
    """What decides the bytes of the shards. A device or a number of threads does not."""
    decisive: dict[str, Any] = {k: v for k, v in to_plain(cfg).items() if k not in ("device", "threads", "out", "checkpoint")}
    return {
        "stage": stage.name,
        "checkpoint": checkpoint_hash(Path(cfg.checkpoint)) if cfg.checkpoint else "",
        "source": str(cfg.source),
        "config": config_hash(decisive),
    }


def cut(references: Sequence[Reference], size: int) -> list[Sequence[Reference]]:
    """Slices of `size` references, the last one shorter."""
    if size < 1:
        raise ConfigError(f"images_per_shard is {size}: it must be at least 1")
    return [references[i : i + size] for i in range(0, len(references), size)]


def summary(ledger: Ledger, out: Path, not_listed: Mapping[str, str]) -> str:
    """A line for people, and what became of the masks when there are none. `not_listed` is `Source.skipped`."""
    skipped = Counter(ledger.skipped) + Counter(not_listed.values())
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(skipped.items())) or "none"
    line = f"{out}: {ledger.images} images, {ledger.masks} masks in {ledger.shards} shards; images skipped: {reasons}"
    dropped = {name: number for name, number in ledger.counts.items() if name.startswith("dropped/") and number}
    if ledger.masks or not dropped:
        return line
    most = max(dropped, key=lambda name: dropped[name])
    return f"{line}\nno mask was kept, most went by {most}: a young model wants lower thresholds in stage.generator"


if __name__ == "__main__":
    main()
