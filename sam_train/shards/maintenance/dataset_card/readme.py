"""The data set card for people: README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sam_train.shards.maintenance.dataset_card.croissant import DatasetDescription
from sam_train.shards.maintenance.dataset_card.facts import DatasetFacts
from sam_train.shards.maintenance.findings import printable
from sam_train.shards.maintenance.statistics.figures import Drawing
from sam_train.shards.maintenance.statistics.measure import Statistics
from sam_train.shards.maintenance.statistics.reference import REFERENCE_DATASETS

MAX_TEXT_LENGTH = 200


def readme(description: DatasetDescription, facts: DatasetFacts, statistics: Statistics, drawings: Sequence[Drawing]) -> str:
    """Return the card as Markdown. Texts from shards are escaped, so that they cannot start a row, a link or a tag."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(  # noqa: S701  Markdown; `cell` and `code` escape the texts
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = cell
    return environment.get_template("card.md.j2").render(
        description=description,
        facts=facts,
        sources=[_format_source(source) for source in facts.sources],
        made_by=[code(json.dumps(made_by, sort_keys=True)) for made_by in facts.made_by],
        skipped=[(cell(reason), count) for reason, count in facts.skipped.most_common()],
        counts=[(cell(name), count) for name, count in facts.counts.most_common()],
        drawings=drawings,
        reference_datasets=REFERENCE_DATASETS,
        per_image=facts.num_masks / max(facts.num_images, 1),
        megapixels=statistics.num_pixels / max(statistics.num_images, 1) / 1e6,
        num_bytes=sum(file.bytes for file in facts.shards),
        first_shard=code(facts.shards[0].path.name),
    )


def cell(text: str) -> str:
    """Return a text for a table: on one line, printable, with the special characters of Markdown and HTML escaped."""
    plain = printable(text, MAX_TEXT_LENGTH)
    return "".join("&#" + str(ord(letter)) + ";" if letter in "|<>[]*`&" else letter for letter in plain)


def code(text: str) -> str:
    """Return a text for backticks or a fenced block: on one line, printable, without backticks."""
    return printable(text, MAX_TEXT_LENGTH).replace("`", "'")


def _format_source(source: Any) -> dict[str, Any]:
    texts = {name: cell(getattr(source, name)) for name in ("stage", "annotator", "config")}
    numbers = {name: getattr(source, name) for name in ("num_masks", "num_prompts", "seconds")}
    return {**texts, **numbers, "checkpoint": cell(source.checkpoint[:12])}
