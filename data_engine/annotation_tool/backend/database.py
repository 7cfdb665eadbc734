"""The store: one SQLite file in WAL mode. Readers never wait, writers wait for each other for milliseconds.

What a transaction wrote is on the disk when its request is answered (synchronous=FULL): a server that is killed loses what it
did not yet answer, and the page sends that again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam_train.errors import ConfigError

VERSION = 2
STATES = ("queued", "leased", "done", "skipped", "sent_back", "accepted")
ORIGINS = ("proposed", "accepted", "edited", "clicked", "drawn")
"""Of a mask: shown to the annotator and not looked at; taken as shown; shown or clicked, and changed by hand; by prompts alone;
with the brush alone."""

SCHEMA = f"""
CREATE TABLE images (
    key TEXT PRIMARY KEY, image_id INTEGER NOT NULL, position INTEGER NOT NULL, origin TEXT NOT NULL,
    prefilled INTEGER NOT NULL DEFAULT 0, shard INTEGER
);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY, image TEXT NOT NULL REFERENCES images(key), pass INTEGER NOT NULL,
    position INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN {STATES}),
    annotator TEXT, lease_ends REAL, reason TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '', reviewer TEXT,
    seconds REAL NOT NULL DEFAULT 0, ended REAL, UNIQUE (image, pass), UNIQUE (image, annotator),
    CHECK (state = 'queued' OR annotator IS NOT NULL), CHECK (state != 'leased' OR lease_ends IS NOT NULL)
);
CREATE INDEX tasks_in_order ON tasks (state, position, pass);
CREATE INDEX tasks_of ON tasks (annotator, state);
CREATE TABLE masks (
    id TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks(id), number INTEGER NOT NULL, counts TEXT NOT NULL,
    height INTEGER NOT NULL, width INTEGER NOT NULL, area INTEGER NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN {ORIGINS}), proposed TEXT, name TEXT NOT NULL DEFAULT '', predicted_iou REAL NOT NULL,
    stability_score REAL NOT NULL, prompts TEXT NOT NULL, clicks INTEGER NOT NULL, strokes INTEGER NOT NULL,
    seconds REAL NOT NULL, wall_seconds REAL NOT NULL, checkpoint TEXT NOT NULL, annotator TEXT NOT NULL,
    revisions INTEGER NOT NULL DEFAULT 1, deleted INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL, UNIQUE (task, number)
);
CREATE TABLE commits (
    id TEXT PRIMARY KEY, mask TEXT NOT NULL, task INTEGER NOT NULL, annotator TEXT NOT NULL, kind TEXT NOT NULL,
    sha256 TEXT NOT NULL, at REAL NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, annotator TEXT NOT NULL, task INTEGER NOT NULL, kind TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT ''
);
"""
FROM_VERSION_1 = "ALTER TABLE masks ADD COLUMN name TEXT NOT NULL DEFAULT ''"


class Database:
    """The file, with a connection for each thread. Raises ConfigError for a file that is no store of this version."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._local = path, threading.local()
        try:
            with self.transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                new = not version and not db.execute("SELECT 1 FROM sqlite_master").fetchone()
                if new or version == 1:
                    for statement in (SCHEMA if new else FROM_VERSION_1).split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {VERSION}")
                    version = VERSION
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is no store of sam-annotate ({error}): name another folder by out=") from error
        if version != VERSION:
            raise ConfigError(f"{path} is a store of version {version}, this is {VERSION}: name another folder by out=")

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection; each statement sees what was written before it."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that has the file for itself from its start: what it reads is still so when it writes."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
