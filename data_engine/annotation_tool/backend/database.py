"""The store: one SQLite file in WAL mode. Readers never block; writers wait milliseconds for each other.

A transaction is on disk before the server responds to its request (synchronous=FULL). A killed server therefore loses only
requests without a response, and the page sends those again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam_train.errors import ConfigError

SCHEMA_VERSION = 2
STATES = ("queued", "leased", "done", "skipped", "sent_back", "accepted")
ORIGINS = ("proposed", "accepted", "edited", "clicked", "drawn")
"""Origin of a mask. proposed: shown to the annotator, not reviewed yet. accepted: proposed and accepted unchanged. edited:
proposed or clicked, then changed by hand. clicked: made with prompts alone. drawn: made with the brush alone."""

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
MIGRATION_FROM_1 = "ALTER TABLE masks ADD COLUMN name TEXT NOT NULL DEFAULT ''"


class Database:
    """The store's file, with one connection for each thread.

    Creates the tables in a new file and migrates a file of version 1. Raises ConfigError if the file is not a store or has
    another version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._local = path, threading.local()
        try:
            with self.transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                new = not version and not db.execute("SELECT 1 FROM sqlite_master").fetchone()
                if new or version == 1:
                    for statement in (SCHEMA if new else MIGRATION_FROM_1).split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                    version = SCHEMA_VERSION
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is not a store of sam-annotate ({error}): give another folder with out=") from error
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{path} is a store of version {version}, expected {SCHEMA_VERSION}: give another folder with out=")

    @property
    def connection(self) -> sqlite3.Connection:
        """Connection of the current thread, in autocommit mode: each statement sees all earlier writes."""
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
        """Run a block as one transaction that holds the write lock from its start, so its reads stay valid until it writes."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
