"""Objects that the routes share, and the dependencies by which routes receive them."""

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
    """Objects that the routes share."""

    queue: TaskQueue
    masks: MaskStore
    images: ImageCache
    access: AccessTokens
    embedding_service: EmbeddingService | None
    """Service of the model. None if the server has no model; then annotators draw every mask."""
    num_prefetch: int
    """Number of unassigned images whose embeddings are computed in advance."""
    idle_after_s: float
    move_on_after_s: float
    show_existing_masks: bool
    """Propose the masks of the corpus to the annotator."""


def app_context_of(request: Request) -> AppContext:
    """Return the context of the application that serves a request."""
    context: AppContext = request.app.state.context
    return context


def user_of(request: Request) -> User:
    """Return the user who sent a request, by `Authorization: Bearer` or the page's cookie. Raises HttpError (401)."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    token = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    return app_context_of(request).access.authenticate(token)


Context = Annotated[AppContext, Depends(app_context_of)]
CurrentUser = Annotated[User, Depends(user_of)]
