"""Human annotation in the browser: console script `sam-annotate`.

    sam-annotate corpus=IMAGES checkpoint=model.pt out=runs/people annotators=[ann,bob] reviewers=[eve]
    sam-annotate export corpus=IMAGES out=runs/people
    sam-annotate summary out=runs/people
    sam-annotate audit corpus=SHARDS checkpoint=model.pt out=runs/audit annotators=[ann,bob] overlap=2

The first command serves the page and prints a login link for each user. After a crash, start it again with the same `out`: every
request that got a response is stored. `export` writes the images that were finished since the last export into out/shards. It
and `summary` may run while the server runs. Faces are covered before an image is shown, and `export` needs the same `privacy`.
`audit` serves a random sample of images with their existing masks for correction; `summary` then reports how far these masks were
from the corrected ones.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from omegaconf import DictConfig

from data_engine.commands import ANNOTATE
from data_engine.console import console
from data_engine.privacy import Privacy, count_listed_images, write_privacy_review
from data_engine.sources import ImageReference, Source, open_source
from sam_train.config import build, config_hash, to_plain
from sam_train.errors import ConfigError, install_extra
from sam_train.files import atomic_write_bytes

if TYPE_CHECKING:  # fastapi comes with an extra
    from fastapi import FastAPI

    from data_engine.annotation_tool.backend.app_context import AppContext

ACTIONS = ("serve", "audit", "export", "summary")
HASH_IGNORED_KEYS = (
    "action", "device", "threads", "host", "port", "allowed_hosts", "num_prefetch", "annotators", "reviewers", "out", "privacy",
)  # fmt: skip
"""Config keys that do not influence the masks and are not part of the config hash; `privacy` is recorded by its `identity`."""


def main() -> None:
    """Run `sam-annotate` on the process's arguments."""
    ANNOTATE.main()


def command(cfg: DictConfig) -> None:
    """Run the action of a composed config: serve, audit, export or summary. Raises ConfigError for invalid values."""
    check_config(cfg)
    {"serve": serve, "audit": serve, "export": export_shards, "summary": print_summary}[cfg.action](cfg)


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError for missing, invalid or contradictory values."""
    if cfg.action not in ACTIONS:
        raise ConfigError(f"action is {cfg.action!r}: expected {', '.join(ACTIONS)}")
    needed = ("out",) if cfg.action == "summary" else ("corpus", "out")
    for name in needed:
        if not cfg[name]:
            raise ConfigError(f"sam-annotate needs {name}=...: sam-annotate corpus=IMAGES checkpoint=FILE out=FOLDER")
    for name, minimum in (("overlap", 1), ("images_per_shard", 1), ("num_prefetch", 0), ("port", 0), ("num_audit_images", 1)):
        if not isinstance(cfg[name], int) or cfg[name] < minimum:
            raise ConfigError(f"{name} is {cfg[name]}: expected an integer of at least {minimum}")
    for name in ("lease_s", "idle_after_s", "move_on_after_s"):
        if not isinstance(cfg[name], (int, float)) or cfg[name] <= 0:
            raise ConfigError(f"{name} is {cfg[name]}: expected a number of seconds above 0")
    if cfg.proposals is not None and (cfg.show_existing_masks or cfg.action == "audit"):
        raise ConfigError(
            "generator@proposals= excludes show_existing_masks=true and audit: proposed masks come from the model or the corpus"
        )
    if cfg.proposals is not None and cfg.action == "serve" and not cfg.checkpoint:
        raise ConfigError("generator@proposals= needs a model: give checkpoint=")
    if cfg.action in ("export", "summary") and not (Path(cfg.out) / "store.sqlite").is_file():
        raise ConfigError(f"{cfg.out} has no store.sqlite: give the out= that sam-annotate was started with")


def serve(cfg: DictConfig) -> None:
    """Serve the page until interrupted."""
    app, context, links = create_application(cfg)
    import uvicorn

    if (
        context.embedding_service is not None and context.embedding_service.decoder_onnx is not None
    ):  # takes seconds the first time
        console.print(f"decoder for browsers: {context.embedding_service.decoder_onnx}")
    for name, link in links.items():
        console.print(f"{name}: {link}")
    if not _is_loopback(cfg.host):
        console.print(f"warning: {cfg.host} is reachable by others and tokens are sent unencrypted: use a TLS proxy")
    try:
        # Longer than the work on one object, so that the next request does not have to open a new connection.
        uvicorn.run(
            app,
            host=cfg.host,
            port=cfg.port,
            timeout_keep_alive=120,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
    finally:
        if context.embedding_service is not None:
            context.embedding_service.close()


def create_application(cfg: DictConfig) -> tuple[FastAPI, AppContext, dict[str, str]]:
    """Return the application, its context, and the login link of each user by name."""
    try:
        from data_engine.annotation_tool.backend.app import create_app
        from data_engine.annotation_tool.backend.app_context import AppContext
    except ModuleNotFoundError as error:
        raise ConfigError(f"sam-annotate needs {error.name}: {install_extra('annotate')}") from error
    from data_engine.annotation_tool.backend.access import AccessTokens, load_or_create_tokens
    from data_engine.annotation_tool.backend.database import Database
    from data_engine.annotation_tool.backend.embedding_service import EmbeddingService
    from data_engine.annotation_tool.backend.image_cache import ImageCache
    from data_engine.annotation_tool.backend.mask_store import MaskStore
    from data_engine.annotation_tool.backend.task_queue import TaskQueue

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    out, privacy = Path(cfg.out), build_privacy(cfg)
    source = open_corpus(cfg, privacy)
    tokens = load_or_create_tokens(out / "tokens.json", list(cfg.annotators), list(cfg.reviewers))
    access = AccessTokens(tokens)
    images = ImageCache(source)
    embedding_service = None
    if cfg.checkpoint:
        mask_generator = None if cfg.proposals is None else build(cfg.proposals)
        embedding_service = EmbeddingService(cfg.checkpoint, images, out, device=cfg.device, mask_generator=mask_generator)
    database = Database(out / "store.sqlite")
    queue = TaskQueue(database, lease_s=cfg.lease_s)
    references = sample_references(source, cfg.num_audit_images, cfg.seed) if cfg.action == "audit" else source.references
    new = queue.add_images(references, overlap=cfg.overlap)
    console.print(f"{cfg.corpus}: {len(references)} images, {new} of them new to {out}; tasks: {queue.count_by_state()}")
    context = AppContext(
        queue=queue,
        masks=MaskStore(database, queue),
        images=images,
        access=access,
        embedding_service=embedding_service,
        num_prefetch=cfg.num_prefetch,
        idle_after_s=cfg.idle_after_s,
        move_on_after_s=cfg.move_on_after_s,
        show_existing_masks=cfg.show_existing_masks or cfg.action == "audit",
    )
    if embedding_service is not None:
        embedding_service.prefetch(queue.upcoming_images(cfg.num_prefetch))
    app = create_app(context, allowed_hosts=["127.0.0.1", "localhost", cfg.host, *cfg.allowed_hosts])
    links = {name: f"http://{cfg.host}:{cfg.port}/login#{token}" for name, (token, _) in tokens.items()}
    return app, context, links


def export_shards(cfg: DictConfig) -> None:
    """Write the finished images that are not in a shard yet as shards."""
    from data_engine.annotation_tool.backend.database import Database
    from data_engine.annotation_tool.backend.image_cache import ImageCache
    from data_engine.annotation_tool.backend.shard_export import ShardExporter

    privacy, out = build_privacy(cfg), Path(cfg.out) / "shards"
    exporter = ShardExporter(
        Database(Path(cfg.out) / "store.sqlite"),
        ImageCache(open_corpus(cfg, privacy)),
        out,
        privacy=privacy,
        stage=cfg.stage,
        reviewed_only=cfg.reviewed_only,
        config=annotation_config_hash(cfg),
        images_per_shard=cfg.images_per_shard,
    )
    for shard in (shards := exporter.write()):
        console.print(f"wrote {shard}")
    if not shards:
        console.print("no newly finished images to export")
    elif privacy.detectors:
        console.print(f"report of the redacted boxes: {write_privacy_review(out)}")
    if cfg.privacy.take_down and (left := count_listed_images(out, Path(cfg.privacy.take_down))):
        drop = f"sam-data repair {out} --drop-ids {cfg.privacy.take_down} --out NEW"
        console.print(f"{left} images of {cfg.privacy.take_down} are in earlier shards: remove them with {drop}")


def print_summary(cfg: DictConfig) -> None:
    """Print annotation cost, agreement and corrections as JSON."""
    from data_engine.annotation_tool.backend.database import Database
    from data_engine.annotation_tool.backend.summary import summarize

    print(json.dumps(summarize(Database(Path(cfg.out) / "store.sqlite")), indent=1))


def build_privacy(cfg: DictConfig) -> Privacy:
    """Return the privacy filter and record its identity in `out` before the first image is shown.

    Raises ConfigError if images of `out` were shown with another filter, and the errors of `Privacy`.
    """
    privacy: Privacy = build(cfg.privacy)
    if warning := privacy.warning():
        console.print(f"privacy: {warning}")
    path, identity = Path(cfg.out) / "privacy.json", privacy.identity()
    if not path.with_name("store.sqlite").exists():
        atomic_write_bytes(path, (json.dumps({"privacy": identity}) + "\n").encode())
    elif (recorded := _read_identity(path)) != identity:
        expected = "privacy=none" if recorded == "none" else "the same privacy=... and the same values of it"
        message = f"the images in {cfg.out} were shown with privacy {recorded}, this is {identity}"
        raise ConfigError(f"{message}: give {expected}, or another out=")
    return privacy


def _read_identity(path: Path) -> str:
    if not path.is_file():
        return "none"  # a store of an earlier version, which covered nothing
    try:
        return str(json.loads(path.read_bytes())["privacy"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} does not state the privacy of the images ({type(error).__name__}: {error})"
        raise ConfigError(f"{message}: restore the file, or give another out=") from error


def open_corpus(cfg: DictConfig, privacy: Privacy) -> Source:
    """Return the corpus behind the privacy filter, and print the files that it skips."""
    source = privacy.redact_source(open_source(cfg.corpus))
    for name, reason in source.skipped.items():
        console.print(f"skipped: {name} ({reason})")
    return source


def sample_references(source: Source, num_images: int, seed: int) -> list[ImageReference]:
    """Draw a random sample of images, in the order of the source; a seed always draws the same images.

    Raises ConfigError if the source has no masks.
    """
    indices = np.random.default_rng(seed).permutation(len(source.references))[:num_images]
    references = [source.references[index] for index in sorted(indices.tolist())]
    if not any(reference.sample for reference in references):
        raise ConfigError("an audit corrects existing masks, and this corpus has images only: give corpus= shards")
    return references


def annotation_config_hash(cfg: DictConfig) -> str:
    """Return the hash of the config values that influence the masks."""
    return config_hash({name: value for name, value in to_plain(cfg).items() if name not in HASH_IGNORED_KEYS})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
