"""The run folder of the engine on disk: the files that every process of a run reads and writes.

out/
  sa_000000.tar, .masks.parquet, .manifest.json    one set per slice
  engine.json                                      provenance of the shards
  ledger.json, report/                             written when all slices are done
  .engine/listing.arrow                            the source's images, divided into slices, as listed at the start
  .engine/claims/                                  claims on slices; removed when all slices are done
  .engine/work with one .jsonl per process         one line per slice that it made: seconds, node
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

from data_engine.slices.slice_listing import SliceListing, write_listing
from data_engine.sources import Source
from sam_train.claims import MACHINE, Claim, Claims
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.shards import manifest_path

_POLL_S = 0.2


class EngineRunFolder:
    """The folder `out=` of a run. claim_expires_s: expiry time of claims, see `Claims`."""

    def __init__(self, out: Path, claim_expires_s: float) -> None:
        self.out, self._hidden = out, out / ".engine"
        self.claims = Claims(self._hidden / "claims", claim_expires_s)
        self._slice_log = self._hidden / "work" / f"{socket.gethostname()}.{os.getpid()}.{token_hex(4)}.jsonl"

    def prepare(
        self,
        provenance: Mapping[str, str],
        open_source: Callable[[], Source],
        *,
        images_per_shard: int,
        log: Callable[[str], None] = lambda _: None,
    ) -> tuple[SliceListing, bool]:
        """Return the listing, and whether it existed before. The first process writes it, all others read it.

        Raises ConfigError if the folder holds shards of another provenance, and what `open_source` raises.
        """
        if self.out.is_dir():
            self._refresh(self.out)
            self.check_same_provenance(provenance)
        with self.acquire_listing_lock(log):
            self.check_same_provenance(provenance)
            path = self._hidden / "listing.arrow"
            existed = path.is_file()
            if not existed:
                write_listing(path, open_source(), images_per_shard=images_per_shard)
            if not (provenance_file := self.out / "engine.json").is_file():
                atomic_write_bytes(provenance_file, (json.dumps(dict(provenance), indent=1) + "\n").encode())
        return self.listing(), existed

    def acquire_listing_lock(self, log: Callable[[str], None]) -> Claim:
        """Wait until this process holds the claim to list the source, and return it."""
        logged = False
        while True:
            self.claims.folder.mkdir(parents=True, exist_ok=True)  # in the loop: a process that finishes the run removes it
            if (claim := self.claims.acquire("listing")) is not None:
                self.refresh()
                return claim
            if not logged:
                log(f"{self.out}: waiting for another process that lists the source")
            logged = True
            time.sleep(_POLL_S)

    def check_same_provenance(self, provenance: Mapping[str, str]) -> None:
        """Raise ConfigError if the folder holds shards of another provenance."""
        path = self.out / "engine.json"
        if path.is_file():
            stored = json.loads(path.read_bytes())
            if stored != provenance:
                changed = sorted(k for k in {*stored, *provenance} if stored.get(k) != provenance.get(k))
                raise ConfigError(f"{self.out} holds shards made with another {', '.join(changed)}: choose another out=")
        elif any(self.out.glob("*.tar")):
            raise ConfigError(f"{self.out} holds tars that this stage did not write: choose another out=")

    def listing(self) -> SliceListing:
        """Return the images of the run, divided into slices."""
        return SliceListing(self._hidden / "listing.arrow")

    def shard_path(self, index: int) -> Path:
        """Return the path of the shard of slice `index`."""
        return self.out / f"sa_{index:06d}.tar"

    def is_done(self, index: int) -> bool:
        """Return whether the shard of slice `index` is complete."""
        return manifest_path(self.shard_path(index)).is_file()

    def missing_slices(self, slices: Iterable[int]) -> list[int]:
        """Return those of `slices` whose shard is not complete. Reads the folder once."""
        names = set(os.listdir(self.out)) if self.out.is_dir() else set()
        return [index for index in slices if manifest_path(self.shard_path(index)).name not in names]

    def claim_slice(self, index: int) -> Claim | None:
        """Return a claim on slice `index`, None if another process holds it. `is_done` is up to date afterwards."""
        claim = self.claims.acquire(f"{index:06d}")
        if claim is not None:
            self.refresh()
        return claim

    def refresh(self) -> None:
        """Invalidate cached directory entries, so that the changes of other machines become visible."""
        for folder in (self.out, self._hidden):
            self._refresh(folder)

    @staticmethod
    def _refresh(folder: Path) -> None:
        # NFS caches directory entries for up to a minute, including a file's absence, until this client changes the directory.
        # The processes of a machine share the cache and the file: what a killed process leaves, the next one removes.
        path = folder / f".refresh-{hashlib.sha256(MACHINE.encode()).hexdigest()[:16]}.tmp"
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o644))
        path.unlink(missing_ok=True)

    def log_slice(self, entry: Mapping[str, Any]) -> None:
        """Append one line to this process's log of slices. Every process has its own file, so lines are never interleaved."""
        self._slice_log.parent.mkdir(parents=True, exist_ok=True)
        with self._slice_log.open("a") as stream:
            stream.write(json.dumps(dict(entry)) + "\n")

    def read_slice_log(self) -> dict[int, dict[str, Any]]:
        """Return the log entry of each slice, the last one if there are several. Lines truncated by a kill are skipped."""
        entries: dict[int, dict[str, Any]] = {}
        for path in sorted((self._hidden / "work").glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    entries[int(entry["slice"])] = entry
                except (ValueError, KeyError, TypeError):
                    continue
        return entries

    def driver_folder(self, name: str) -> Path:
        """Create and return a folder for the files of a driver."""
        path = self._hidden / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove_claims(self) -> None:
        """Remove the claims of a run whose slices are all done."""
        shutil.rmtree(self.claims.folder, ignore_errors=True)
