"""The card for people: README.md."""

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

MAX_LETTERS = 200


def readme(title: DatasetDescription, facts: DatasetFacts, statistics: Statistics, drawings: Sequence[Drawing]) -> str:
    """Markdown. What stands in shards is put into it as text: no letter of it starts a row, a link or a tag."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(  # noqa: S701  Markdown; `finalize` makes text of what is put in
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = cell
    return environment.get_template("card.md.j2").render(
        title=title,
        facts=facts,
        makers=[_maker(maker) for maker in facts.makers],
        made_by=[code(json.dumps(made_by, sort_keys=True)) for made_by in facts.made_by],
        skipped=[(cell(reason), count) for reason, count in facts.skipped.most_common()],
        counts=[(cell(name), count) for name, count in facts.counts.most_common()],
        drawings=drawings,
        known_sets=REFERENCE_DATASETS,
        per_image=facts.num_masks / max(facts.num_images, 1),
        megapixels=statistics.num_pixels / max(statistics.num_images, 1) / 1e6,
        num_bytes=sum(file.bytes for file in facts.shards),
        first_shard=code(facts.shards[0].path.name),
    )


def cell(text: str) -> str:
    """Text for a table: on one line, printable, nothing in it that Markdown or HTML would take for its own."""
    plain = printable(text, MAX_LETTERS)
    return "".join("&#" + str(ord(letter)) + ";" if letter in "|<>[]*`&" else letter for letter in plain)


def code(text: str) -> str:
    """Text between backticks or in a fenced block: on one line, printable, without backticks."""
    return printable(text, MAX_LETTERS).replace("`", "'")


def _maker(maker: Any) -> dict[str, Any]:
    texts = {name: cell(getattr(maker, name)) for name in ("stage", "annotator", "config")}
    numbers = {name: getattr(maker, name) for name in ("num_masks", "num_prompts", "seconds")}
    return {**texts, **numbers, "checkpoint": cell(maker.checkpoint[:12])}
