"""What the server works with, and who asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from data_engine.annotation_tool.backend.access import AccessTokens, User
from data_engine.annotation_tool.backend.embedding_service import EmbeddingService
from data_engine.annotation_tool.backend.image_cache import ImageCache
from data_engine.annotation_tool.backend.mask_store import MaskStore
from data_engine.annotation_tool.backend.task_queue import TaskQueue

COOKIE = "sam_annotate"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """What the server works with."""

    queue: TaskQueue
    commits: MaskStore
    images: ImageCache
    access: AccessTokens
    embedding_service: EmbeddingService | None
    """None: no model, every mask is drawn."""
    num_prefetch: int
    """Embeddings made for this many images that nobody has yet."""
    idle_after_s: float
    move_on_after_s: float
    show_existing_masks: bool
    """Whether masks that the source has are shown to the annotator."""


def app_context_of(request: Request) -> AppContext:
    """The desk of the application."""
    context: AppContext = request.app.state.context
    return context


def user_of(request: Request) -> User:
    """Who asks, by `Authorization: Bearer` or the cookie of the page. Raises HttpError (401)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    return app_context_of(request).access.authenticate(given)


Context = Annotated[AppContext, Depends(app_context_of)]
CurrentUser = Annotated[User, Depends(user_of)]
