"""k-click mIoU on many data sets: the paper's suite of 23 (sections 7.1 and D.1; configs/protocol/sa23.yaml has the table).

IoU is averaged over a data set's masks, then over data sets. One with more than 15,000 masks is cut to about 10,000, by whole
images drawn by the seed. A data set whose shards are not there is reported as absent, with what to do.
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
class DataSet:
    """One of the suite: what the paper says of it, where it comes from, and how it becomes shards."""

    name: str
    title: str
    images: int
    masks: int
    over_ritm: float
    """Points of mIoU@1 that SAM is above RITM."""
    get: str
    importer: str | None
    """What follows `sam-data import`; None when no importer reads its published form."""

    @staticmethod
    def of(name: str, entry: Mapping[str, Any]) -> DataSet:
        """From an entry of the table. Raises ConfigError for other keys."""
        known = {"importer" if key == "import" else key: value for key, value in entry.items()}
        expected = {field.name for field in fields(DataSet)} - {"name"}
        if set(known) != expected:
            wrong = sorted(set(known) ^ expected)
            raise ConfigError(f"data set {name}: missing or unknown: {', '.join(wrong)}; see configs/protocol/sa23.yaml")
        return DataSet(name=name, **known)

    def what_to_do(self, root: Path) -> str:
        """For one whose shards are not there."""
        other = f"KIND ... --out ROOT/{self.name}, once it is in a form that `sam-data import --help` names"
        by = self.importer or other
        return f"{self.title}: from {self.get}; then sam-data import {by.replace('ROOT', str(root))}"


class Sa23Protocol(EvaluationProtocol):
    """The suite with its choices.

    root: a folder with a folder of shards for each data set, by its name. only: some names, all if null.
    clicks: the protocol for each. datasets: the table. many_masks, few_masks: what is cut, and to how many.
    """

    def __init__(
        self,
        *,
        clicks: ClickProtocol,
        datasets: Mapping[str, Mapping[str, Any]],
        root: str | None = None,
        only: Sequence[str] | None = None,
        many_masks: int = 15_000,
        few_masks: int = 10_000,
    ) -> None:
        self.clicks, self.root, self.many_masks, self.few_masks = clicks, root, many_masks, few_masks
        if strangers := sorted(set(only or ()) - set(datasets)):
            raise ConfigError(f"no data set {strangers[0]!r} in the table: expected some of {', '.join(datasets)}")
        self.datasets = [DataSet.of(name, datasets[name]) for name in (only or datasets)]

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        if shards or not self.root:
            raise ConfigError("the suite takes no shards=: give protocol.root=FOLDER, with a folder of shards for each data set")
        if not any(self._shards(dataset) for dataset in self.datasets):
            todo = "\n".join(f"  {dataset.what_to_do(Path(self.root))}" for dataset in self.datasets)
            raise ConfigError(f"no data set's shards are in {self.root}. What to do, for those that are wanted:\n{todo}")
        found = [(dataset, sample) for dataset in self.datasets for sample in self._samples(dataset)]
        number_in: Counter[str] = Counter()
        image_entries = []
        for dataset, sample in found:
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
            result = ClickResult.of(measured, self.clicks.num_clicks)
            found = result.summary(self.clicks.report) if len(result.ious) else None
            rows.append(_row(dataset, found, self.clicks.report))
            if found:
                summaries.append(found)
            else:
                notes.append("absent: " + dataset.what_to_do(Path(self.root or "")))
        if not summaries:
            raise ConfigError(f"there is no mask to measure by in {len(measurements)} images")
        counts = ("num_masks", "num_images")
        measures = {name: mean([s[name] for s in summaries]) for name in summaries[0] if name not in counts}
        measures |= {name: sum(int(s[name]) for s in summaries) for name in counts}
        measures["num_datasets"] = len(summaries)
        if notes:
            notes.insert(
                0, f"These means are over {len(summaries)} of {len(self.datasets)} data sets: the published ones are over 23"
            )
        return Summary(measures=measures, paper=PAPER, rows=rows, columns=_columns(self.clicks.report), notes=notes)

    def _shards(self, dataset: DataSet) -> list[Path]:
        folder = Path(self.root or "") / dataset.name
        return done_shards(folder) if folder.is_dir() else []

    def _samples(self, dataset: DataSet) -> list[IndexedSample]:
        """Those that are measured, in the order of the shards."""
        entries: list[IndexedSample] = []
        num_masks: list[int] = []
        for shard in self._shards(dataset):
            entries += index_shard(shard)
            num_masks += _masks_by_image(shard)
        if sum(num_masks) <= self.many_masks:
            return entries
        order = np.random.default_rng(self.clicks.seed).permutation(len(entries))
        before = np.cumsum(np.array(num_masks)[order]) - np.array(num_masks)[order]
        return [entries[i] for i in sorted(order[before < self.few_masks])]


def _masks_by_image(shard: Path) -> list[int]:
    manifest = load_manifest(shard)
    if manifest.places is None or "num_masks" not in manifest.places:
        raise ConfigError(f"the manifest of {shard} does not say how many masks each image has: import the data set again")
    return manifest.places["num_masks"]


def _columns(report: Sequence[int]) -> dict[str, str]:
    by_click = {f"miou_at_{k}": f"@{k}" for k in report}
    counts = {"num_masks": "masks", "paper_masks": "paper's", "paper_over_ritm": "- RITM"}
    return {"data_set": "data set", **by_click, "oracle_at_1": "oracle", **counts}


def _row(dataset: DataSet, found: Mapping[str, float] | None, report: Sequence[int]) -> dict[str, Any]:
    measures = [f"miou_at_{k}" for k in report] + ["oracle_at_1", "num_images", "num_masks"]
    return {
        "data_set": dataset.name,
        "title": dataset.title,
        **{name: found[name] if found else None for name in measures},
        "paper_images": dataset.images,
        "paper_masks": dataset.masks,
        "paper_over_ritm": f"{dataset.over_ritm:+.1f}",
    }
