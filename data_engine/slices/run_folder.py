"""The folder of a run as it lies on disk: what every process that works on it reads and writes.

out/
  sa_000000.tar, .masks.parquet, .manifest.json    a slice each
  engine.json                                      what made them
  ledger.json, report/                             when all slices are there
  .engine/listing.arrow                            the pictures of the source, cut into slices, as first listed
  .engine/claims/                                  who works on what; goes when all slices are there
  .engine/work: *.jsonl                            a line for each slice that a process made: seconds, where
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

from data_engine.slices.claims import Claim, Claims
from data_engine.slices.listing import SliceListing, write_listing
from data_engine.sources import Source
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.shards import manifest_path

_POLL_S = 0.2


class EngineRunFolder:
    """`out=` of a run. claim_expires_s: see `Claims`."""

    def __init__(self, out: Path, claim_expires_s: float) -> None:
        self.out, self._hidden = out, out / ".engine"
        self.claims = Claims(self._hidden / "claims", claim_expires_s)
        self._log = self._hidden / "work" / f"{socket.gethostname()}.{os.getpid()}.{token_hex(4)}.jsonl"

    def prepare(
        self,
        provenance: Mapping[str, str],
        open_source: Callable[[], Source],
        *,
        images_per_shard: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> tuple[SliceListing, bool]:
        """The listing, and whether it was there: written by one process, the first, and read by all others.

        Raises ConfigError if the folder holds shards that something else made, and what `open_source` raises.
        """
        if self.out.is_dir():
            self._refresh(self.out)
            self.check_same_provenance(provenance)
        with self.acquire_listing_lock(say):
            self.check_same_provenance(provenance)
            path = self._hidden / "listing.arrow"
            was_there = path.is_file()
            if not was_there:
                write_listing(path, open_source(), images_per_shard=images_per_shard)
            if not (mark := self.out / "engine.json").is_file():
                atomic_write_bytes(mark, (json.dumps(dict(provenance), indent=1) + "\n").encode())
        return self.listing(), was_there

    def acquire_listing_lock(self, say: Callable[[str], None]) -> Claim:
        said = False
        while True:
            self.claims.folder.mkdir(parents=True, exist_ok=True)  # again: a process that finished the run removes it
            if (claim := self.claims.take("listing")) is not None:
                self.refresh()
                return claim
            if not said:
                say(f"{self.out}: waiting for another process that lists the source")
            said = True
            time.sleep(_POLL_S)

    def check_same_provenance(self, provenance: Mapping[str, str]) -> None:
        """Raise ConfigError if the folder holds shards that something else made."""
        path = self.out / "engine.json"
        if path.is_file():
            there = json.loads(path.read_bytes())
            if there != provenance:
                changed = sorted(k for k in {*there, *provenance} if there.get(k) != provenance.get(k))
                raise ConfigError(f"{self.out} holds shards made with another {', '.join(changed)}: choose another out=")
        elif any(self.out.glob("*.tar")):
            raise ConfigError(f"{self.out} holds tars that this stage did not write: choose another out=")

    def listing(self) -> SliceListing:
        """The pictures of the run, cut into slices."""
        return SliceListing(self._hidden / "listing.arrow")

    def shard(self, index: int) -> Path:
        """The file of slice `index`."""
        return self.out / f"sa_{index:06d}.tar"

    def is_done(self, index: int) -> bool:
        """Whether the slice's shard is whole."""
        return manifest_path(self.shard(index)).is_file()

    def missing_slices(self, slices: Iterable[int]) -> list[int]:
        """Those whose shard is not whole, by one look at the folder."""
        names = set(os.listdir(self.out)) if self.out.is_dir() else set()
        return [index for index in slices if manifest_path(self.shard(index)).name not in names]

    def claim(self, index: int) -> Claim | None:
        """The slice for this process alone, or None. What `is_done` says afterwards holds."""
        claim = self.claims.take(f"{index:06d}")
        if claim is not None:
            self.refresh()
        return claim

    def refresh(self) -> None:
        """See from now on what other machines did in the folder."""
        for folder in (self.out, self._hidden):
            self._refresh(folder)

    @staticmethod
    def _refresh(folder: Path) -> None:
        # NFS believes for up to a minute what it knew of a folder, a file's absence too, until it changes something there itself.
        path = folder / f".{token_hex(8)}.tmp"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        path.unlink()

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to what this process did. One process writes one file, so lines are whole."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as stream:
            stream.write(json.dumps(dict(entry)) + "\n")

    def read_slice_log(self) -> dict[int, dict[str, Any]]:
        """What was logged of each slice, the last line where there are several. A line that a killed process tore is none."""
        found: dict[int, dict[str, Any]] = {}
        for path in sorted((self._hidden / "work").glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    found[int(entry["slice"])] = entry
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def driver_folder(self, name: str) -> Path:
        """A folder for what a driver keeps."""
        path = self._hidden / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        """Remove the claims of a run all of whose slices are there."""
        shutil.rmtree(self.claims.folder, ignore_errors=True)
