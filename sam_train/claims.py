"""Claims give a slice or a run folder one holder at a time, so that no work is done twice. They are files in a shared folder.

A claim is a file `NAME.GENERATION`. The process that creates it with O_EXCL holds it; exactly one process can, whatever the
number of processes and machines. The holder keeps it for as long as it lives and updates the file's modification time
periodically (a heartbeat). When the holder is gone, its successor is the process that creates the file of the next generation,
which again only one can. No file is renamed or removed during a run, so two processes that both consider a holder dead cannot
undo each other's claims.

A holder is gone:
- as soon as it releases the claim, which it writes into its file;
- immediately after its death, as seen from the same machine: it held a lock on its file (flock), and the lock ends with the
  process;
- as seen from another machine, when the claim has expired: the file was not modified for `expires_s`. The waiting process
  measures this time on its own clock, starting at its first look, so the clocks of two machines need not agree. Locks are not
  trusted across machines, because some network file systems have none.

Guarantee: at any moment at most one process has the right to write a slice. A process that was suspended (a closed laptop,
a stopped container) for longer than `expires_s` may have a successor. It detects this because it creates the next generation
itself just before its shard is renamed into place (`Claim.confirm`), and then drops its work. A slice is written twice only if
the process is suspended a second time, for as long, between that check and the rename; both files then have the same bytes, and
one complete file replaces the other.

This requires a file system with exclusive creation: any local one, NFS from version 3, Lustre, GPFS, CephFS, SMB; not a bucket
that is mounted as a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sam_train.errors import SamTrainError

HEARTBEATS_PER_EXPIRY = 6
_RELEASED = b"released"


class ClaimLostError(SamTrainError):
    """Another process took over this process's claim, because its heartbeat was missing for longer than the expiry time."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that wrote a claim: its machine (host name and boot id), its id, and when it began, as ISO local time."""

    machine: str
    pid: int
    since: str


class Claims:
    """The claims in a folder, from the point of view of one process.

    expires_s: time in seconds without a heartbeat after which a holder on another machine is considered dead. It must be longer
        than the file system caches file attributes (NFS: 60 s).
    """

    def __init__(self, folder: Path, expires_s: float) -> None:
        self.folder, self.expires_s = folder, expires_s
        self._last_changes: dict[Path, tuple[tuple[int, bytes], float]] = {}

    def acquire(self, name: str) -> Claim | None:
        """Return a claim of this process; None if another process holds it or the folder was removed because the run is done."""
        generation = 0
        while True:
            path = self.folder / f"{name}.{generation}"
            try:
                return Claim(path, self.expires_s)
            except FileExistsError:
                if not self._holder_is_gone(path):
                    return None
                generation += 1
            except FileNotFoundError:
                return None

    def holder(self, name: str) -> Holder | None:
        """Return the holder of a claim; None if nobody holds it or it is not written yet."""
        if (path := self._newest(name)) is None:
            return None
        try:
            document = json.loads(path.read_bytes())
            return Holder(str(document["machine"]), int(document["pid"]), str(document.get("since", "")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def has_heartbeat(self, name: str) -> bool:
        """Return whether the holder of a claim has given a sign of life since `acquire` first looked at its file."""
        path = self._newest(name)
        if path is None or path not in self._last_changes:
            return path is not None
        return path.stat().st_mtime_ns != self._last_changes[path][0][0]

    def _newest(self, name: str) -> Path | None:
        found = {int(p.suffix[1:]): p for p in self.folder.glob(f"{name}.*") if p.suffix[1:].isdigit()}
        return found[max(found)] if found else None

    def _holder_is_gone(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False  # the folder is being removed: all slices are done
        try:
            content, modified = os.read(descriptor, 4096), os.fstat(descriptor).st_mtime_ns
            if content == _RELEASED or (_holder_machine(content) == MACHINE and _can_lock(descriptor)):
                return True
        finally:
            os.close(descriptor)
        now = time.monotonic()
        last_state, changed_at = self._last_changes.get(path, (None, now))
        if last_state != (modified, content):
            self._last_changes[path] = (modified, content), now
            return False
        return now - changed_at > self.expires_s


class Claim:
    """A slice that belongs to this process until `release`. The constructor raises FileExistsError if the generation exists."""

    def __init__(self, path: Path, expires_s: float) -> None:
        self._expires_s = expires_s
        self._create_file(path)
        self._stop = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._heartbeat, name=f"claim {path.name}", daemon=True)
        self._heartbeat_thread.start()

    def confirm(self) -> None:
        """Create the next generation, so that no other process can take over any more.

        Raises ClaimLostError if another process has already created it.
        """
        previous = self._descriptor
        try:
            self._create_file(self._next_generation())
        except FileExistsError as error:
            message = f"{self._path.name} was taken over: this process sent no heartbeat for {self._expires_s:.0f} s"
            raise ClaimLostError(f"{message}; its results for the slice are dropped") from error
        _mark_released(previous)

    def release(self) -> None:
        """Give up the claim. The file stays, and another process may take the slice immediately."""
        self._stop.set()
        self._heartbeat_thread.join()
        _mark_released(self._descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _create_file(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with suppress(OSError):  # a file system without locks: other processes wait for the expiry
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Written after locking: a process that can read the holder must not be able to lock the file.
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.write(descriptor, json.dumps({"machine": MACHINE, "pid": os.getpid(), "since": since}).encode())
        _HELD.add(descriptor)
        self._path, self._descriptor = path, descriptor

    def _next_generation(self) -> Path:
        name, _, generation = self._path.name.rpartition(".")
        return self._path.with_name(f"{name}.{int(generation) + 1}")

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._expires_s / HEARTBEATS_PER_EXPIRY):
            with suppress(OSError):  # the heartbeat is missing then, which `confirm` detects
                os.utime(self._path)


_HELD: set[int] = set()
"""Open files of the claims of this process."""


def _close_inherited() -> None:
    """Close the files in a forked child: its copies would keep the locks after the death of the holder."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_close_inherited)


def _mark_released(descriptor: int) -> None:
    _HELD.discard(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _RELEASED, 0)
    finally:
        os.close(descriptor)


def _machine_id() -> str:
    """Return an id of a host name under one boot of a kernel: processes with the same id can see each other's locks."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        kernel = ""
    return f"{socket.gethostname()} {kernel}".strip()


MACHINE = _machine_id()


def _holder_machine(content: bytes) -> str | None:
    try:
        return str(json.loads(content)["machine"])
    except (ValueError, KeyError, TypeError):  # not written yet
        return None


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by its holder, or a file system without locks
        return False
    return True
