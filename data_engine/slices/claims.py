"""Who works on which slice, settled in a folder that all workers see, so that no slice is made twice.

A claim is a file `NAME.GENERATION`. Whoever creates it (O_EXCL: one does, whatever the number of processes and machines)
holds it for as long as the process lives and touches the file now and then. A holder that is gone is followed by whoever
creates the next generation, which again only one can; nothing is renamed or removed while a run is going on, so two that
judge the same holder gone cannot undo each other's claims.

When a holder is gone:
- as soon as it lets go, which it writes into its file;
- on the same machine at once: it held a lock on its file (flock), which dies with it;
- elsewhere when its file was not touched for `expires_s`. That is measured by whoever waits, on its own clock from the
  moment it looked first, so clocks of two machines need not agree. Locks are not trusted across machines: some network
  file systems have none.

What holds: at any moment one process at most believes rightly that it may write. A process that slept (a laptop's lid, a
stopped container) for longer than `expires_s` may have been followed. It notices when it takes the next generation itself
just before its shard gets its name (`Claim.confirm`), and gives up. Only if it sleeps a second time for as long in the
instant between that and the renaming would a slice be written twice, then with the same bytes, one whole file over the other.
This needs a file system with exclusive creation: any local one, NFS from version 3, Lustre, GPFS, CephFS, SMB; not a bucket
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
from pathlib import Path

from sam_train.errors import SamTrainError

HEARTBEATS_PER_EXPIRY = 6
_RELEASED = b"released"


class ClaimLostError(SamTrainError):
    """Another process follows this one: it was not heard of for too long."""


class Claims:
    """The claims in a folder, as one process sees them.

    expires_s: a holder on another machine that was not heard of for so long is taken for dead. Longer than the file
        system keeps what it knows of files (NFS: 60 s).
    """

    def __init__(self, folder: Path, expires_s: float) -> None:
        self.folder, self.expires_s = folder, expires_s
        self._seen: dict[Path, tuple[tuple[int, bytes], float]] = {}

    def take(self, name: str) -> Claim | None:
        """A claim of this process, or None: another process holds it, or the folder is gone because all is done."""
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

    def _holder_is_gone(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False  # the folder goes: everything is done
        try:
            content, touched = os.read(descriptor, 4096), os.fstat(descriptor).st_mtime_ns
            if content == _RELEASED or (_machine_of(content) == MACHINE and _can_lock(descriptor)):
                return True
        finally:
            os.close(descriptor)
        now = time.monotonic()
        seen, since = self._seen.get(path, (None, now))
        if seen != (touched, content):
            self._seen[path] = (touched, content), now
            return False
        return now - since > self.expires_s


class Claim:
    """A slice that is this process's own until `release`. Raises FileExistsError when the generation has a holder."""

    def __init__(self, path: Path, expires_s: float) -> None:
        self._expires_s = expires_s
        self._hold(path)
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._heartbeat, name=f"claim {path.name}", daemon=True)
        self._beats.start()

    def confirm(self) -> None:
        """Begin a generation of one's own that nobody else can begin any more. Raises ClaimLostError when somebody has."""
        before = self._descriptor
        try:
            self._hold(self._next())
        except FileExistsError as error:
            message = f"{self._path.name} was taken over: this process was not heard of for {self._expires_s:.0f} s"
            raise ClaimLostError(f"{message}; what it made of the slice is dropped") from error
        _mark_released(before)

    def release(self) -> None:
        """Let go. The file stays, and whoever wants the slice may follow at once."""
        self._stop.set()
        self._beats.join()
        _mark_released(self._descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _hold(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with suppress(OSError):  # a file system without locks: others wait until it expires
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # After the lock: who can read that we hold it must not be able to lock it.
        os.write(descriptor, json.dumps({"machine": MACHINE, "pid": os.getpid()}).encode())
        self._path, self._descriptor = path, descriptor

    def _next(self) -> Path:
        name, _, generation = self._path.name.rpartition(".")
        return self._path.with_name(f"{name}.{int(generation) + 1}")

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._expires_s / HEARTBEATS_PER_EXPIRY):
            with suppress(OSError):  # not heard of then, which `confirm` will tell
                os.utime(self._path)


def _mark_released(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _RELEASED, 0)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """Names a host name under a running kernel: processes with the same one see each other's locks."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        kernel = ""
    return f"{socket.gethostname()} {kernel}".strip()


MACHINE = _machine()


def _machine_of(content: bytes) -> str | None:
    try:
        return str(json.loads(content)["machine"])
    except (ValueError, KeyError, TypeError):  # not written yet
        return None


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or no locks here
        return False
    return True
