"""Who is asking: a token for each annotator, in a file that only its owner reads."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from data_engine.annotation_tool.backend.http_errors import HttpError
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.records import KEY_PATTERN

ROLES = ("annotator", "reviewer")
MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who a token belongs to."""

    name: str
    role: str


class AccessTokens:
    """Tokens by person. Raises ConfigError for a role that is none, a name or a token that is too weak or given twice."""

    def __init__(self, tokens: Mapping[str, tuple[str, str]]) -> None:
        self._users: list[tuple[bytes, User]] = []
        for name, (token, role) in tokens.items():
            if role not in ROLES:
                raise ConfigError(f"{name} has the role {role!r}: expected {' or '.join(ROLES)}")
            if not KEY_PATTERN.fullmatch(name):
                raise ConfigError(f"annotator {name[:80]!r}: expected 1 to 200 letters, digits, '_' or '-'")
            if len(token) < MIN_TOKEN_LENGTH:
                raise ConfigError(f"the token of {name} has {len(token)} characters: expected at least {MIN_TOKEN_LENGTH}")
            self._users.append((sha256(token.encode()).digest(), User(name=name, role=role)))
        if len({digest for digest, _ in self._users}) < len(self._users):
            raise ConfigError("two annotators have the same token: nobody could tell their work apart")

    def authenticate(self, token: str) -> User:
        """Whose token this is. Every one is compared, each in constant time. Raises HttpError (401)."""
        given = sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = [user for digest, user in self._users if hmac.compare_digest(digest, given)]
        if not token or not found:
            raise HttpError(401, "no such token: log in with the one that sam-annotate printed for you")
        return found[0]


def read_tokens(path: Path, annotators: Sequence[str], reviewers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Token and role by name from the file; names that are not in it yet get a new token, and the file is written.

    Raises ConfigError for a file that is none of ours and for a name with two roles.
    """
    if double := set(annotators) & set(reviewers):
        raise ConfigError(f"annotators and reviewers both name {', '.join(sorted(double))}: nobody reviews as who they annotate")
    tokens = _parsed(path) if path.exists() else {}
    wanted = dict.fromkeys(annotators, "annotator") | dict.fromkeys(reviewers, "reviewer")
    new = {name: (secrets.token_urlsafe(24), role) for name, role in wanted.items() if name not in tokens}
    if new:
        tokens |= new
        document = {name: {"token": token, "role": role} for name, (token, role) in tokens.items()}
        before = os.umask(0o077)
        try:
            atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
        finally:
            os.umask(before)
    return tokens


def _parsed(path: Path) -> dict[str, tuple[str, str]]:
    try:
        document = json.loads(path.read_bytes())
        return {str(name): (str(entry["token"]), str(entry["role"])) for name, entry in document.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = '{"name": {"token": "...", "role": "annotator"}}'
        raise ConfigError(f"{path} holds no tokens ({type(error).__name__}: {error}): expected {expected}") from error
