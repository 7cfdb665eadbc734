"""Run one stage of the data engine over a source.

    sam-engine stage=fully_automatic source=PHOTOS checkpoint=model.pt out=SHARDS

The source is listed once and divided into slices of `images_per_shard` images in a fixed order; each slice is written atomically
as one shard. The same command can be started again, on this or another machine, while the first one runs or after it: it makes
only the missing slices, and no slice is made twice. A different command with the same `out` is rejected. At the end `out` holds
the shards with their manifests, engine.json (provenance), ledger.json (totals: images, masks, skips by reason) and report/.
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
from data_engine.overlays import write_overlays
from data_engine.privacy import Privacy, count_listed_images, write_privacy_review
from data_engine.run_summary import write_run_summary
from data_engine.slices import EngineJob, EngineRunFolder, SliceListing, with_absolute_paths
from data_engine.sources import Source, open_source
from data_engine.stages import Stage
from data_engine.thresholds import with_checkpoint_thresholds
from sam_train.checkpoint import checkpoint_hash
from sam_train.config import build, config_hash, to_plain
from sam_train.errors import ConfigError, SamTrainError
from sam_train.files import file_sha256
from sam_train.renames import with_original_names
from sam_train.subsets import parse_slice

HASH_IGNORED_KEYS = (
    "device", "threads", "out", "checkpoint", "driver", "slice", "dry_run", "num_prefetch", "claim_expires_s", "report",
    "privacy", "overlays",
)  # fmt: skip
"""Config keys that are not hashed, because they do not affect the bytes of the shards, or because the provenance contains them in
another form (the hash of the checkpoint, `Privacy.identity`)."""


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
    """Run the stage that the config names and return the ledger, which is also written when all slices are done.

    Raises SamTrainError if slices failed, ConfigError if the config or the folder `out` cannot be used.
    """
    cfg = with_checkpoint_thresholds(cfg)
    stage = check_config(cfg)
    driver: Driver = build(cfg.driver)
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, stage))
    folder = job.folder
    listing, resumed = folder.prepare(
        job.provenance, lambda: open_selected_images(cfg), images_per_shard=cfg.images_per_shard, log=console.print
    )
    if resumed:
        console.print(f"{cfg.out}: resuming with {listing.num_images} images, listed on {_format_time(listing.listed)}")
    slices = select_slices(len(listing), cfg.slice)
    missing = folder.missing_slices(slices)
    failed = run_with_progress_bar(driver, job, listing, slices, missing, description=stage.name.replace("_", " "))
    ledger = finish_run(cfg, folder, listing, changed=bool(missing))
    if failed:
        reasons = "; ".join(f"slice {index}: {reason}" for index, reason in sorted(failed.items()))
        raise SamTrainError(f"{len(failed)} slices failed, start the same command again to retry them: {reasons}")
    return ledger


def run_with_progress_bar(
    driver: Driver,
    job: EngineJob,
    listing: SliceListing,
    slices: Sequence[int],
    missing: Sequence[int],
    *,
    description: str,
) -> dict[int, str]:
    """Let the driver make the `missing` ones of `slices`, with a progress bar. Return the failed slices with the reason."""
    sizes = {index: listing.num_images_in(index) for index in slices}
    num_missing = sum(sizes[index] for index in missing)
    total = sum(sizes.values())
    with ProgressBar(description=description, num_images=total, num_done=total - num_missing, console=console) as bar:
        return driver.run(job, missing, bar)


def finish_run(cfg: DictConfig, folder: EngineRunFolder, listing: SliceListing, *, changed: bool) -> Ledger:
    """Return the ledger of the shards that exist. If all slices are done, also write it, the report and the privacy review.

    changed: whether this command made slices; if not, an existing report and review are kept.
    """
    folder.refresh()
    num_missing = len(folder.missing_slices(range(len(listing))))
    ledger = read_ledger(folder.out, folder.read_slice_log().values())
    console.print(format_summary(ledger, Path(cfg.out), listing.skipped))
    if cfg.privacy.take_down and (num_listed := count_listed_images(folder.out, Path(cfg.privacy.take_down))):
        command_line = f"sam-data repair {cfg.out} --drop-ids {cfg.privacy.take_down} --out NEW"
        console.print(
            f"{num_listed} images on the list {cfg.privacy.take_down} are in shards that were written before:"
            f" {command_line} writes the shards without them"
        )
    if num_missing:
        console.print(f"{num_missing} of {len(listing)} slices are missing: the ledger is written when all are done")
        return ledger
    report = folder.out / "report"
    if cfg.report and ledger.images and (changed or not report.is_dir()):
        console.print(f"report: {write_run_summary(folder.out, report, name=Path(cfg.out).name)}")
    if cfg.overlays:
        console.print(f"overlays: {write_overlays(folder.out, Path(cfg.overlays))} images with their masks in {cfg.overlays}")
    review = folder.out / "privacy" / "review.html"
    if ledger.counts.get("privacy/images_searched") and (changed or not review.is_file()):
        console.print(f"{format_privacy_summary(ledger)}; see {write_privacy_review(folder.out)}")
    write_ledger(folder.out, ledger)
    folder.remove_claims()
    return ledger


def print_estimate(cfg: DictConfig) -> None:
    """Print an estimate of the time and size of the run from a sample of its images. Writes nothing into `out`."""
    cfg = with_checkpoint_thresholds(cfg)
    stage = check_config(cfg)
    driver: Driver = build(cfg.driver)
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, stage))
    job.folder.check_same_provenance(job.provenance)
    slices = select_slices(-(-len(open_selected_images(cfg).references) // cfg.images_per_shard), cfg.slice)
    console.print(str(estimate_run(job, open_selected_images(cfg), job.folder.missing_slices(slices), driver)))


def check_config(cfg: DictConfig) -> Stage:
    """Build and return the stage. Raises ConfigError if a required value is missing or out of range."""
    for name in ("source", "out"):
        if not cfg[name]:
            raise ConfigError(
                f"sam-engine needs {name}=...: sam-engine stage=fully_automatic source=PHOTOS checkpoint=FILE out=FOLDER"
            )
    for name, minimum in (("first_image", 0), ("num_images", 1), ("images_per_shard", 1), ("num_prefetch", 0)):
        if not (isinstance(cfg[name], int) and cfg[name] >= minimum) and not (name == "num_images" and cfg[name] is None):
            raise ConfigError(f"{name} is {cfg[name]}: expected a whole number of at least {minimum}")
    stage: Stage = build(cfg.stage)
    if stage.needs_model and not cfg.checkpoint:
        raise ConfigError(f"stage {stage.name} needs a model: add checkpoint=FILE, for example runs/<name>/model.pt")
    return stage


def open_selected_images(cfg: DictConfig) -> Source:
    """Open the source, restricted to `first_image` and `num_images`. Raises ConfigError if no images are selected."""
    source = open_source(cfg.source)
    end = None if cfg.num_images is None else cfg.first_image + cfg.num_images
    references = source.references[cfg.first_image : end]
    if not references:
        raise ConfigError(f"{cfg.source} has {len(source.references)} images: first_image={cfg.first_image} is out of range")
    return Source(references=references, skipped=source.skipped, max_pixels=source.max_pixels)


def select_slices(num_slices: int, part: object) -> range:
    """Return the slices of share `part` = "I/N": every N-th from the I-th, counted from 0; all slices if it is None.

    Raises ConfigError if `part` is not of that form.
    """
    return range(num_slices) if part is None else range(num_slices)[parse_slice(part)]


def run_provenance(cfg: DictConfig, stage: Stage) -> dict[str, str]:
    """Return everything that determines the bytes of the shards. Device and number of threads do not.

    Raises ConfigError if a detector's weights or packages are missing, before anything is written.
    """
    privacy: Privacy = build(cfg.privacy)
    if warning := privacy.warning():
        console.print(f"privacy: {warning}")
    proposer = (cfg.stage.get("generator") or {}).get("file")
    return {
        "stage": stage.name,
        "checkpoint": checkpoint_hash(cfg.checkpoint) if cfg.checkpoint else "",
        **({"proposer": file_sha256(Path(proposer))} if proposer else {}),
        "source": str(cfg.source),
        "config": hash_config(to_plain(cfg)),
        "privacy": privacy.identity(),
    }


def hash_config(config: Mapping[str, Any]) -> str:
    """Return the hash of the config without HASH_IGNORED_KEYS. Names of earlier versions are hashed, so it survives renames."""
    hashed = {key: value for key, value in config.items() if key not in HASH_IGNORED_KEYS}
    return config_hash(with_original_names(hashed))


def format_privacy_summary(ledger: Ledger) -> str:
    """Return a line that states how many faces, plates and so on were redacted."""
    counts = {name.removeprefix("privacy/"): f"{number:.0f}" for name, number in ledger.counts.items() if "privacy/" in name}
    redacted, searched = (counts.pop(name, "0") for name in ("images_covered", "images_searched"))
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"
    return f"privacy: {kinds} redacted, in {redacted} of {searched} images"


def format_summary(ledger: Ledger, out: Path, not_listed: Mapping[str, str]) -> str:
    """Return a line with the totals, and a second one with the main reason if masks were found but none was kept.

    not_listed: `Source.skipped`, whose images are counted as skipped.
    """
    skipped = Counter(ledger.skipped) + Counter(not_listed.values())
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(skipped.items())) or "none"
    line = f"{out}: {ledger.images} images, {ledger.masks} masks in {ledger.shards} shards; images skipped: {reasons}"
    if ledger.images_per_machine_second:
        line += f"; {ledger.images_per_machine_second:.3g} images/s per worker"
    dropped = {name: number for name, number in ledger.counts.items() if name.startswith("dropped/") and number}
    if ledger.masks or not dropped:
        return line
    most = max(dropped, key=lambda name: dropped[name])
    return f"{line}\nno mask was kept, most were {most}: an early model needs lower thresholds in stage.generator"


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


if __name__ == "__main__":
    main()
