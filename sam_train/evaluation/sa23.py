"""k-click mIoU on the paper's suite of 23 data sets (sections 7.1 and D.1; configs/protocol/sa23.yaml has the table).

IoU is averaged over the masks of each data set, then over data sets. A data set with more than 15,000 masks is subsampled to
about 10,000 by whole images, drawn at random by the seed. A data set without shards is reported as absent, with instructions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sam_train.errors import ConfigError
from sam_train.evaluation.clicks import ClickProtocol, ClickResult
from sam_train.evaluation.protocol import EvaluationImage, EvaluationProtocol, Measurement, Summary, mean
from sam_train.inference import Predictor
from sam_train.shards import done_shards, load_manifest
from sam_train.shards.index import IndexedSample, index_shard, read_sample

PAPER = {
    "SAM ViT-H, all 23 (SAM 2 paper)": {"miou_at_1": 0.581, "miou_at_5": 0.813},
    "SAM ViT-B, all 23 (SAM 2 paper)": {"miou_at_1": 0.559, "miou_at_5": 0.809},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sa23Dataset:
    """One data set of the suite: the paper's figures, its source, and its import into shards."""

    name: str
    title: str
    images: int
    masks: int
    over_ritm: float
    """Points of mIoU@1 by which SAM exceeds RITM in the paper."""
    download: str
    """Source of the files, and the folders into which they belong."""
    importer: str | None
    """Arguments of `sam-data import`; None if no importer reads the published format."""

    @staticmethod
    def from_config(name: str, entry: Mapping[str, Any]) -> Sa23Dataset:
        """Build a data set from an entry of the table. Raises ConfigError for missing or unknown keys."""
        values = {"importer" if key == "import" else key: value for key, value in entry.items()}
        expected = {field.name for field in fields(Sa23Dataset)} - {"name"}
        if set(values) != expected:
            wrong = sorted(set(values) ^ expected)
            raise ConfigError(f"data set {name}: missing or unknown keys: {', '.join(wrong)}; see configs/protocol/sa23.yaml")
        return Sa23Dataset(name=name, **values)

    def instructions(self, root: Path) -> str:
        """Return how to obtain and import the data set into `root`."""
        unsupported = f"KIND ... --out ROOT/{self.name}, after conversion to a format that `sam-data import --help` lists"
        arguments = (self.importer or unsupported).replace("ROOT", str(root))
        return f"{self.title}: from {self.download}; then sam-data import {arguments}"


class Sa23Protocol(EvaluationProtocol):
    """k-click mIoU on the suite.

    clicks: protocol for each data set. datasets: the table. root: folder with one folder of shards per data set, by its name.
    only: names of the data sets to evaluate; null for all.
    subsample_above_masks: data sets with more masks are subsampled, to about subsample_to_masks.

    Raises ConfigError for a name in `only` that is not in the table, and for a wrong entry of the table.
    """

    def __init__(
        self,
        *,
        clicks: ClickProtocol,
        datasets: Mapping[str, Mapping[str, Any]],
        root: str | None = None,
        only: Sequence[str] | None = None,
        subsample_above_masks: int = 15_000,
        subsample_to_masks: int = 10_000,
    ) -> None:
        self.clicks, self.root, self.subsample_above_masks, self.subsample_to_masks = (
            clicks,
            root,
            subsample_above_masks,
            subsample_to_masks,
        )
        if unknown := sorted(set(only or ()) - set(datasets)):
            raise ConfigError(f"no data set {unknown[0]!r} in the table: expected names of {', '.join(datasets)}")
        self.datasets = [Sa23Dataset.from_config(name, datasets[name]) for name in (only or datasets)]

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        if shards or not self.root:
            raise ConfigError("protocol=sa23 takes no shards=: give protocol.root=FOLDER with one folder of shards per data set")
        if not any(self._shards(dataset) for dataset in self.datasets):
            instructions = "\n".join(f"  {dataset.instructions(Path(self.root))}" for dataset in self.datasets)
            raise ConfigError(f"{self.root} has shards of no data set. Instructions for each of them:\n{instructions}")
        samples = [(dataset, sample) for dataset in self.datasets for sample in self._samples(dataset)]
        number_in: Counter[str] = Counter()
        image_entries = []
        for dataset, sample in samples:
            number_in[dataset.name] += 1
            name = f"{dataset.name}_{sample.key}"
            image_entries.append(EvaluationImage(number=number_in[dataset.name], name=name, source=(dataset.name, sample)))
        return image_entries

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        dataset, sample = image_entry.source
        return {"dataset": dataset, **self.clicks.measure_sample(predictor, read_sample(sample), image_entry.number)}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        rows, notes, summaries = [], [], []
        for dataset in self.datasets:
            measured = [m for m in measurements if m["dataset"] == dataset.name]
            result = ClickResult.from_measurements(measured, self.clicks.num_clicks)
            means = result.means(self.clicks.report) if len(result.ious) else None
            rows.append(_row(dataset, means, self.clicks.report))
            if means:
                summaries.append(means)
            else:
                notes.append("absent: " + dataset.instructions(Path(self.root or "")))
        if not summaries:
            raise ConfigError(f"no mask to evaluate in {len(measurements)} images")
        counts = ("num_masks", "num_images")
        measures = {name: mean([s[name] for s in summaries]) for name in summaries[0] if name not in counts}
        measures |= {name: sum(int(s[name]) for s in summaries) for name in counts}
        measures["num_datasets"] = len(summaries)
        if notes:
            notes.insert(
                0, f"These means are over {len(summaries)} of {len(self.datasets)} data sets; the published means are over 23"
            )
        return Summary(measures=measures, paper=PAPER, rows=rows, columns=_columns(self.clicks.report), notes=notes)

    def _shards(self, dataset: Sa23Dataset) -> list[Path]:
        folder = Path(self.root or "") / dataset.name
        return done_shards(folder) if folder.is_dir() else []

    def _samples(self, dataset: Sa23Dataset) -> list[IndexedSample]:
        """Return the images of a data set that are evaluated, in the order of the shards."""
        entries: list[IndexedSample] = []
        num_masks: list[int] = []
        for shard in self._shards(dataset):
            entries += index_shard(shard)
            num_masks += _masks_by_image(shard)
        if sum(num_masks) <= self.subsample_above_masks:
            return entries
        order = np.random.default_rng(self.clicks.seed).permutation(len(entries))
        before = np.cumsum(np.array(num_masks)[order]) - np.array(num_masks)[order]
        return [entries[i] for i in sorted(order[before < self.subsample_to_masks])]


def _masks_by_image(shard: Path) -> list[int]:
    manifest = load_manifest(shard)
    if manifest.places is None or "num_masks" not in manifest.places:
        raise ConfigError(f"the manifest of {shard} lacks the number of masks of each image: import the data set again")
    return manifest.places["num_masks"]


def _columns(report: Sequence[int]) -> dict[str, str]:
    by_click = {f"miou_at_{k}": f"@{k}" for k in report}
    counts = {"num_masks": "masks", "paper_masks": "paper's", "paper_over_ritm": "- RITM"}
    return {"data_set": "data set", **by_click, "oracle_at_1": "oracle", **counts}


def _row(dataset: Sa23Dataset, means: Mapping[str, float] | None, report: Sequence[int]) -> dict[str, Any]:
    measures = [f"miou_at_{k}" for k in report] + ["oracle_at_1", "num_images", "num_masks"]
    return {
        "data_set": dataset.name,
        "title": dataset.title,
        **{name: means[name] if means else None for name in measures},
        "paper_images": dataset.images,
        "paper_masks": dataset.masks,
        "paper_over_ritm": f"{dataset.over_ritm:+.1f}",
    }
