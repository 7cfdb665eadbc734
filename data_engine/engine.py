"""Run one stage of the engine over a source.

    sam-engine stage=fully_automatic source=PHOTOS checkpoint=model.pt out=SHARDS

The source is listed once and cut into slices of `images_per_shard` pictures in a fixed order, and each slice becomes one
shard, whole or not at all. Start the same command again, here or on another machine, after or while the first one runs:
only what is missing is done, and nothing twice; another command into the same folder is refused. At the end `out` holds the
shards, their manifests, engine.json (what made them), ledger.json (what became of every image) and report/.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from data_engine.commands import ENGINE
from data_engine.console import console
from data_engine.drivers import Driver
from data_engine.drivers.progress import ProgressBar
from data_engine.estimate import estimate_run
from data_engine.ledger import Ledger, read_ledger, write_ledger
from data_engine.privacy import Privacy, count_listed_images, write_privacy_review
from data_engine.run_summary import write_run_summary
from data_engine.slices import EngineJob, EngineRunFolder, SliceListing, with_absolute_paths
from data_engine.sources import Source, open_source
from data_engine.stages import Stage
from sam_train.checkpoint import checkpoint_hash
from sam_train.config import build, config_hash, to_plain
from sam_train.errors import ConfigError, SamTrainError
from sam_train.files import file_sha256
from sam_train.subsets import parse_slice

HASH_IGNORED_KEYS = (
    "device", "threads", "out", "checkpoint", "driver", "slice", "dry_run", "num_prefetch", "claim_expires_s", "report", "privacy",
)  # fmt: skip
"""What decides no byte of the shards. (The checkpoint does, by its hash, and privacy by its `identity`.)"""


def main() -> None:
    """Run `sam-engine` on the process's arguments."""
    ENGINE.main()


def command(cfg: DictConfig) -> None:
    """Run a stage, or estimate it with `dry_run=true`, as the composed config says."""
    if cfg.dry_run:
        print_estimate(cfg)
    else:
        run_stage(cfg)


def run_stage(cfg: DictConfig) -> Ledger:
    """Run the stage as the config says and return the ledger, which is also written when every slice is there.

    Raises SamTrainError when slices were given up.
    """
    stage = check_config(cfg)
    driver: Driver = build(cfg.driver)
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, stage))
    folder = job.folder
    listing, was_there = folder.prepare(
        job.provenance, lambda: open_selected_images(cfg), images_per_shard=cfg.images_per_shard, say=console.print
    )
    if was_there:
        console.print(f"{cfg.out}: going on with {listing.num_images} images as they were listed on {_date(listing.listed)}")
    mine = select_slices(len(listing), cfg.slice)
    left = folder.missing_slices(mine)
    failed = run_with_progress_bar(driver, job, listing, mine, left, description=stage.name.replace("_", " "))
    ledger = finish_run(cfg, folder, listing, changed=bool(left))
    if failed:
        listed = "; ".join(f"slice {index}: {reason}" for index, reason in sorted(failed.items()))
        raise SamTrainError(f"{len(failed)} slices were given up, start the same command again for them: {listed}")
    return ledger


def run_with_progress_bar(
    driver: Driver, job: EngineJob, listing: SliceListing, mine: Sequence[int], left: Sequence[int], *, description: str
) -> dict[int, str]:
    """Let the driver make what is left of `mine`, behind a bar."""
    sizes = {index: listing.num_images_in(index) for index in mine}
    num_left = sum(sizes[index] for index in left)
    total = sum(sizes.values())
    with ProgressBar(description=description, num_images=total, num_done=total - num_left, console=console) as bar:
        return driver.run(job, left, bar)


def finish_run(cfg: DictConfig, folder: EngineRunFolder, listing: SliceListing, *, changed: bool) -> Ledger:
    """Sum up what is there; if that is everything, write the ledger and the report."""
    folder.refresh()
    num_undone = len(folder.missing_slices(range(len(listing))))
    ledger = read_ledger(folder.out, folder.read_slice_log().values())
    console.print(format_summary(ledger, Path(cfg.out), listing.skipped))
    if cfg.privacy.take_down and (left := count_listed_images(folder.out, Path(cfg.privacy.take_down))):
        drop = f"sam-data repair {cfg.out} --drop-ids {cfg.privacy.take_down} --out NEW"
        console.print(f"{left} images of {cfg.privacy.take_down} are in shards that were written before: {drop} leaves them out")
    if num_undone:
        console.print(f"{num_undone} of {len(listing)} slices are not there yet: the ledger is written when they are")
        return ledger
    report = folder.out / "report"
    if cfg.report and ledger.images and (changed or not report.is_dir()):
        console.print(f"report: {write_run_summary(folder.out, report, name=Path(cfg.out).name)}")
    review = folder.out / "privacy" / "review.html"
    if cfg.privacy.detectors and (changed or not review.is_file()):
        console.print(f"{privacy_summary(ledger)}; see {write_privacy_review(folder.out)}")
    write_ledger(folder.out, ledger)
    folder.close()
    return ledger


def print_estimate(cfg: DictConfig) -> None:
    """Say what the run would take, from a few pictures; writes nothing into `out`."""
    stage = check_config(cfg)
    driver: Driver = build(cfg.driver)
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, stage))
    job.folder.check_same_provenance(job.provenance)
    mine = select_slices(-(-len(open_selected_images(cfg).references) // cfg.images_per_shard), cfg.slice)
    console.print(str(estimate_run(job, open_selected_images(cfg), job.folder.missing_slices(mine), driver)))


def check_config(cfg: DictConfig) -> Stage:
    """The stage, if the config has what it needs. Raises ConfigError."""
    for name in ("source", "out"):
        if not cfg[name]:
            raise ConfigError(
                f"sam-engine needs {name}=...: sam-engine stage=fully_automatic source=PHOTOS checkpoint=FILE out=FOLDER"
            )
    for name, least in (("first_image", 0), ("num_images", 1), ("images_per_shard", 1), ("num_prefetch", 0)):
        if not (isinstance(cfg[name], int) and cfg[name] >= least) and not (name == "num_images" and cfg[name] is None):
            raise ConfigError(f"{name} is {cfg[name]}: expected a whole number of at least {least}")
    stage: Stage = build(cfg.stage)
    if stage.needs_model and not cfg.checkpoint:
        raise ConfigError(f"stage {stage.name} needs a model: give checkpoint=FILE, for example runs/<name>/model.pt")
    return stage


def open_selected_images(cfg: DictConfig) -> Source:
    """The part of the source that the config asks for. Raises ConfigError when there is none."""
    source = open_source(cfg.source)
    last = None if cfg.num_images is None else cfg.first_image + cfg.num_images
    references = source.references[cfg.first_image : last]
    if not references:
        raise ConfigError(f"{cfg.source} has {len(source.references)} pictures, none at first_image={cfg.first_image}")
    return Source(references=references, skipped=source.skipped, max_pixels=source.max_pixels)


def select_slices(num_slices: int, part: object) -> range:
    """Return the slices of share `part` = "I/N": every N-th from the I-th, counted from 0; all slices if it is None.

    Raises ConfigError if `part` is not of that form.
    """
    return range(num_slices) if part is None else range(num_slices)[parse_slice(part)]


def run_provenance(cfg: DictConfig, stage: Stage) -> dict[str, str]:
    """What decides the bytes of the shards. A device or a number of threads does not.

    Raises ConfigError when privacy lacks a detector's weights or packages: before anything is written.
    """
    privacy: Privacy = build(cfg.privacy)
    decisive: dict[str, Any] = {k: v for k, v in to_plain(cfg).items() if k not in HASH_IGNORED_KEYS}
    proposer = (cfg.stage.get("generator") or {}).get("file")
    return {
        "stage": stage.name,
        "checkpoint": checkpoint_hash(Path(cfg.checkpoint)) if cfg.checkpoint else "",
        **({"proposer": file_sha256(Path(proposer))} if proposer else {}),
        "source": str(cfg.source),
        "config": config_hash(decisive),
        "privacy": privacy.identity(),
    }


def privacy_summary(ledger: Ledger) -> str:
    """What privacy covered, for people."""
    counts = {name.removeprefix("privacy/"): f"{number:.0f}" for name, number in ledger.counts.items() if "privacy/" in name}
    images, searched = (counts.pop(name, "0") for name in ("images_covered", "images_searched"))
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"
    return f"privacy: {kinds} covered, in {images} of {searched} images"


def format_summary(ledger: Ledger, out: Path, not_listed: Mapping[str, str]) -> str:
    """A line for people, and what became of the masks when there are none. `not_listed` is `Source.skipped`."""
    skipped = Counter(ledger.skipped) + Counter(not_listed.values())
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(skipped.items())) or "none"
    line = f"{out}: {ledger.images} images, {ledger.masks} masks in {ledger.shards} shards; images skipped: {reasons}"
    if ledger.images_per_machine_second:
        line += f"; {ledger.images_per_machine_second:.3g} images/s a worker"
    dropped = {name: number for name, number in ledger.counts.items() if name.startswith("dropped/") and number}
    if ledger.masks or not dropped:
        return line
    most = max(dropped, key=lambda name: dropped[name])
    return f"{line}\nno mask was kept, most went by {most}: a young model wants lower thresholds in stage.generator"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


if __name__ == "__main__":
    main()
