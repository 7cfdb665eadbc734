"""Record of what an import leaves out: counts by reason, and the names of wrong and missing entries."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from sam_train.errors import ShardError

log = logging.getLogger(__name__)

Policy = Literal["stop", "leave_out"]
"""Action for something that cannot be imported: an error that names it, or leaving it out, named and counted."""

OPTIONS_BY_LOSS: Mapping[str, str] = {
    "crowd": "leave --drop-crowd away",
    "stuff": "give --keep-stuff",
    "below_min_area": "lower --min-area",
    "ignored_value": "change --ignore",
    "bad_annotation": "leave --bad leave_out away to see the first wrong one",
    "box_without_polygon": "boxes are not masks: export polygons or masks, or make masks of the boxes by a model",
    "shape_without_area": "points and lines are not masks: draw polygons",
    "mask_without_pixels": "check the size and the frame of the annotations",
    "polygon_without_pixels": "check the size and the frame of the annotations",
}
"""Count of masks that are left out by a rule -> what to do to keep them."""


@dataclass(slots=True)
class ImportReport:
    """Counts and names of what an import leaves out. `bad` and `missing` say whether a wrong or an absent entry stops it."""

    bad: Policy = "stop"
    missing: Policy = "stop"
    counts: Counter[str] = field(default_factory=Counter)
    """Number of masks, annotations, images or files by reason."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Entries that were left out because they are wrong or absent: name -> error."""
    categories: dict[int, str] = field(default_factory=dict)
    """Names of the data set's classes by their numbers in it, also of classes without masks."""

    @contextmanager
    def entry(self, what: str, name: str) -> Iterator[None]:
        """Handle a ShardError about one entry ("image", "annotation") as `bad` says: count it as "bad_{what}", or raise it."""
        try:
            yield
        except ShardError as error:
            if self.bad == "stop":
                hint = "" if "--bad" in str(error) else f"; '--bad leave_out' leaves out every wrong {what}, named and counted"
                raise ShardError(f"{error}{hint}") from error
            self._leave_out(f"bad_{what}", name, str(error))

    def absent(self, reason: str, name: str, message: str) -> None:
        """Handle a file that does not exist as `missing` says: count it as `reason`, or raise ShardError."""
        if self.missing == "stop":
            raise ShardError(f"{message}; '--missing leave_out' leaves out what lacks its counterpart, named and counted")
        self._leave_out(reason, name, message)

    def _leave_out(self, reason: str, name: str, message: str) -> None:
        self.counts[reason] += 1
        self.left_out[name] = message
        log.info("left out %s: %s", name, message)

    def check_loss(self, num_masks: int) -> None:
        """Raise ShardError, with the option to change, if there are no masks, or if one rule left out more than half of them."""
        losses = {name: self.counts[name] for name in OPTIONS_BY_LOSS if self.counts[name]}
        total = num_masks + sum(losses.values())
        largest = max(losses, key=losses.__getitem__, default="")
        accept = "; '--allow-loss' accepts it"
        if largest and losses[largest] * 2 > total:
            problem = f"the rule {largest!r} leaves out {losses[largest]} of {total} masks"
            raise ShardError(f"{problem}, {num_masks} remain: {OPTIONS_BY_LOSS[largest]}{accept}")
        if not num_masks:
            found = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
            reason = f"counted: {found}" if found else "no image has an annotation: check the folders and the suffixes"
            raise ShardError(f"the import ends with no masks; {reason}{accept}")
