"""The statistics page: figures and numbers in one HTML file that opens from disk and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sam_train.shards.maintenance.statistics.figures import Drawing, images_by_mask_bin
from sam_train.shards.maintenance.statistics.measure import MEASURES, NUM_BINS, Statistics
from sam_train.shards.maintenance.statistics.reference import ENGINE_STAGES, REFERENCE_DATASETS


def render(statistics: Statistics, drawings: Sequence[Drawing], *, name: str) -> str:
    """Return the page of the data set `name`."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("stats.html.j2").render(
        name=name,
        tiles=_tiles(statistics),
        drawings=drawings,
        sets=_sets(statistics, name),
        stages=_stages(statistics),
        engine_stages=ENGINE_STAGES,
        left_out=[(f"{count:,}", reason) for reason, count in sorted(statistics.left_out.items())],
    )


def as_document(statistics: Statistics) -> dict[str, Any]:
    """Return all counts as a JSON document. Histograms have equal bins over 0..1."""
    return {
        "num_images": statistics.num_images,
        "num_masks": statistics.num_masks,
        "mean_masks_per_image": statistics.num_masks / max(statistics.num_images, 1),
        "median_masks_per_image": median_masks(statistics),
        "mean_pixels_per_image": statistics.num_pixels / max(statistics.num_images, 1),
        "images_by_number_of_masks": {str(number): images for number, images in sorted(statistics.masks_per_image.items())},
        "images_by_bin_of_masks": images_by_mask_bin(statistics),
        "means": {measure: statistics.mean(measure) for measure in MEASURES},
        "num_bins": NUM_BINS,
        "histograms": {measure: statistics.histograms[measure].tolist() for measure in MEASURES},
        "mask_centres": statistics.centres.tolist(),
        "stages": {
            stage: {"num_masks": counts.num_masks, "seconds": counts.seconds}
            for stage, counts in sorted(statistics.stages.items())
        },
        "left_out": dict(sorted(statistics.left_out.items())),
    }


def median_masks(statistics: Statistics) -> int:
    """Return the lower median of masks per image; 0 without images."""
    num_images = 0
    for masks, images in sorted(statistics.masks_per_image.items()):
        num_images += images
        if 2 * num_images >= statistics.num_images:
            return masks
    return 0


def _tiles(statistics: Statistics) -> list[dict[str, str]]:
    images, masks, stages = statistics.num_images, statistics.num_masks, len(statistics.stages)
    megapixels = statistics.num_pixels / max(images, 1) / 1e6
    size, concavity = (statistics.mean(name) or 0.0 for name in ("relative_size", "concavity"))
    return [
        {"title": "Images", "value": f"{images:,}", "from": f"{megapixels:.2f} megapixels on average"},
        {
            "title": "Masks",
            "value": f"{masks:,}",
            "from": f"of {stages} stage{'s' * (stages != 1)}",
        },
        {"title": "Masks per image", "value": f"{masks / max(images, 1):.1f}", "from": f"median {median_masks(statistics)}"},
        {"title": "Mean relative size", "value": f"{size:.3f}", "from": f"mean concavity {concavity:.3f}"},
    ]


def _sets(statistics: Statistics, name: str) -> list[tuple[str, str, str, str]]:
    """Return rows of name, images, masks and masks per image; this data set is first."""
    images, masks = statistics.num_images, statistics.num_masks
    rows = [(name, f"{images:,}", f"{masks:,}", f"{masks / max(images, 1):.1f}")]
    for known in REFERENCE_DATASETS:
        counts = (f"{known.millions_of_images:,.3g} million", f"{known.millions_of_masks:,.4g} million")
        rows.append((known.name, *counts, f"{known.masks_per_image:.1f}"))
    return rows


def _stages(statistics: Statistics) -> list[tuple[str, str, str, str]]:
    """Return rows of stage, masks, share and seconds per mask, "-" where no annotator worked."""
    rows = []
    for stage, counts in sorted(statistics.stages.items(), key=lambda item: -item[1].num_masks):
        share = f"{counts.num_masks / statistics.num_masks:.1%}"
        seconds = f"{counts.seconds / counts.num_masks:.2f}" if counts.seconds else "-"
        rows.append((stage.replace("_", " "), f"{counts.num_masks:,}", share, seconds))
    return rows
