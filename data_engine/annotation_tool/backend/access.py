"""Access tokens: one for each user, in a file that only its owner can read."""

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
    """User to whom a token belongs."""

    name: str
    role: str
    """One of ROLES."""


class AccessTokens:
    """Authenticates users by token. `tokens` maps a user's name to token and role.

    Raises ConfigError for an unknown role, an invalid name, a token that is too short, or two users with the same token.
    """

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
            raise ConfigError("two annotators have the same token: give each a token of its own, or their work is mixed up")

    def authenticate(self, token: str) -> User:
        """Return the user to whom a token belongs; all tokens are compared, each in constant time. Raises HttpError (401)."""
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        matches = [user for user_digest, user in self._users if hmac.compare_digest(user_digest, digest)]
        if not token or not matches:
            raise HttpError(401, "the token is not valid: log in with the token that sam-annotate printed for you")
        return matches[0]


def load_or_create_tokens(path: Path, annotators: Sequence[str], reviewers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return token and role by user name from the token file.

    Users without a token get a new one, and the file is written with mode 0600. Raises ConfigError if the file is not a token
    file or if a name is listed both as annotator and as reviewer.
    """
    if duplicates := set(annotators) & set(reviewers):
        names = ", ".join(sorted(duplicates))
        raise ConfigError(f"annotators and reviewers both name {names}: give reviewers names of their own")
    tokens = _parse_tokens(path) if path.exists() else {}
    roles = dict.fromkeys(annotators, "annotator") | dict.fromkeys(reviewers, "reviewer")
    new = {name: (secrets.token_urlsafe(24), role) for name, role in roles.items() if name not in tokens}
    if new:
        tokens |= new
        document = {name: {"token": token, "role": role} for name, (token, role) in tokens.items()}
        previous_umask = os.umask(0o077)
        try:
            atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
        finally:
            os.umask(previous_umask)
    return tokens


def _parse_tokens(path: Path) -> dict[str, tuple[str, str]]:
    try:
        document = json.loads(path.read_bytes())
        return {str(name): (str(entry["token"]), str(entry["role"])) for name, entry in document.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = '{"name": {"token": "...", "role": "annotator"}}'
        raise ConfigError(f"{path} is not a token file ({type(error).__name__}: {error}): expected {expected}") from error
