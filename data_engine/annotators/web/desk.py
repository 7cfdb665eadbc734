"""What the server works with, and who asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from data_engine.annotators.web.access import Access, Person
from data_engine.annotators.web.commits import Commits
from data_engine.annotators.web.encoding import Encoding
from data_engine.annotators.web.pictures import Pictures
from data_engine.annotators.web.queue import Queue

COOKIE = "sam_annotate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the server works with."""

    queue: Queue
    commits: Commits
    pictures: Pictures
    access: Access
    encoding: Encoding | None
    """None: no model, every mask is drawn."""
    num_ahead: int
    """Embeddings made for this many images that nobody has yet."""
    idle_after_s: float
    move_on_after_s: float
    prefill: bool
    """Whether masks that the source has are shown to the annotator."""


def desk_of(request: Request) -> Desk:
    """The desk of the application."""
    desk: Desk = request.app.state.desk
    return desk


def person_of(request: Request) -> Person:
    """Who asks, by `Authorization: Bearer` or the cookie of the page. Raises RefusedError (401)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    return desk_of(request).access.person(given)


AtDesk = Annotated[Desk, Depends(desk_of)]
Who = Annotated[Person, Depends(person_of)]
