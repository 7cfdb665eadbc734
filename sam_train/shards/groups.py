"""Groups of images that stay in one split, such as the frames of a video or the slices of a patient."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from sam_train.errors import ConfigError

GROUP_BY_HELP = (
    "Keep images together that share a folder or a part of their path: a number N takes the first N folders of the path relative "
    "to the data set, anything else is a regular expression whose first group (or whole match) names the group."
)


class GroupBy:
    """Function from the path of an image, relative to its data set, to its group: the first folders, or a regular expression."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self._num_folders = int(rule) if rule.isdecimal() else 0
        try:
            self._pattern = None if self._num_folders else re.compile(rule)
        except re.error as error:
            raise ConfigError(f"--group-by {rule!r} is neither a number of folders nor a regular expression: {error}") from error
        if rule in ("", "0"):
            raise ConfigError(f"--group-by {rule!r}: expected a number of folders from 1, or a regular expression")

    def group(self, path: str) -> str:
        """Return the group of an image. Raises ConfigError, naming the path, if the rule says nothing about it."""
        if self._pattern is None:
            folders = PurePosixPath(path).parts[:-1]
            if len(folders) < self._num_folders:
                raise ConfigError(f"--group-by {self.rule}: {path!r} is in {len(folders)} folders, expected {self._num_folders}")
            return "/".join(folders[: self._num_folders])
        match = self._pattern.search(path)
        group = match[1 if self._pattern.groups else 0] if match else None
        if not group:
            raise ConfigError(f"--group-by {self.rule!r} does not match {path!r}: every image needs a group")
        return group
