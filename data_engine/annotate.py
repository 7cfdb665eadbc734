"""People annotate in a browser.

    sam-annotate corpus=PHOTOS checkpoint=model.pt out=runs/people annotators=[ann,bob] reviewers=[eve]
    sam-annotate export corpus=PHOTOS out=runs/people
    sam-annotate summary out=runs/people
    sam-annotate audit corpus=SHARDS checkpoint=model.pt out=runs/audit annotators=[ann,bob] overlap=2

The first serves the page and prints a token for each name. Start it again after a crash, with the same `out`: nothing that
was answered is lost. `export` writes finished images into out/shards, those that are new since the last time; it and
`summary` work beside a server that runs. Faces are covered before a picture is shown, and export wants the same `privacy`.
`audit` serves a sample of images with the masks that they have, to be corrected; `summary` then says how far these were from what
became of them.
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
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes

if TYPE_CHECKING:  # fastapi comes with an extra
    from fastapi import FastAPI

    from data_engine.annotation_tool.backend.app_context import AppContext

ACTIONS = ("serve", "audit", "export", "summary")
HASH_IGNORED_KEYS = (
    "action", "device", "threads", "host", "port", "allowed_hosts", "num_prefetch", "annotators", "reviewers", "out", "privacy",
)  # fmt: skip
"""What decides no mask. (Privacy decides what is seen: by its `identity`.)"""


def main() -> None:
    """Run `sam-annotate` on the process's arguments."""
    ANNOTATE.main()


def command(cfg: DictConfig) -> None:
    """Serve, export or summarise as the composed config says."""
    check_config(cfg)
    {"serve": serve, "audit": serve, "export": export_shards, "summary": print_summary}[cfg.action](cfg)


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError for values that cannot be."""
    if cfg.action not in ACTIONS:
        raise ConfigError(f"action is {cfg.action!r}: expected {', '.join(ACTIONS)}")
    needed = ("out",) if cfg.action == "summary" else ("corpus", "out")
    for name in needed:
        if not cfg[name]:
            raise ConfigError(f"sam-annotate needs {name}=...: sam-annotate corpus=PHOTOS checkpoint=FILE out=FOLDER")
    for name, least in (("overlap", 1), ("images_per_shard", 1), ("num_prefetch", 0), ("port", 0), ("num_audit_images", 1)):
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise ConfigError(f"{name} is {cfg[name]}: expected a whole number of at least {least}")
    for name in ("lease_s", "idle_after_s", "move_on_after_s"):
        if not isinstance(cfg[name], (int, float)) or cfg[name] <= 0:
            raise ConfigError(f"{name} is {cfg[name]}: expected seconds above 0")
    if cfg.proposals is not None and (cfg.show_existing_masks or cfg.action == "audit"):
        raise ConfigError(
            "generator@proposals= and show_existing_masks=true exclude each other: masks come from the model or the corpus"
        )
    if cfg.proposals is not None and cfg.action == "serve" and not cfg.checkpoint:
        raise ConfigError("generator@proposals= wants a model that makes the masks: give checkpoint=")
    if cfg.action in ("export", "summary") and not (Path(cfg.out) / "store.sqlite").is_file():
        raise ConfigError(f"{cfg.out} holds no store.sqlite: name the folder that sam-annotate was started with")


def serve(cfg: DictConfig) -> None:
    """Serve until interrupted."""
    app, context, links = create_application(cfg)
    import uvicorn

    if context.embedding_service is not None and context.embedding_service.decoder_onnx is not None:  # seconds, the first time
        console.print(f"decoder for browsers: {context.embedding_service.decoder_onnx}")
    for name, link in links.items():
        console.print(f"{name}: {link}")
    if not _is_loopback(cfg.host):
        console.print(f"warning: {cfg.host} is seen by others, and tokens go over the network as they are: put TLS before it")
    try:
        # Longer than an annotator looks at an object: a connection that was closed meanwhile costs the next call a new one.
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
    """The application, what it works with, and for each person the link that logs them in."""
    try:
        from data_engine.annotation_tool.backend.app import create_app
        from data_engine.annotation_tool.backend.app_context import AppContext
    except ModuleNotFoundError as error:
        raise ConfigError(f"sam-annotate needs {error.name}: pip install 'sam-train[annotate]'") from error
    from data_engine.annotation_tool.backend.access import AccessTokens, read_tokens
    from data_engine.annotation_tool.backend.database import Database
    from data_engine.annotation_tool.backend.embedding_service import EmbeddingService
    from data_engine.annotation_tool.backend.image_cache import ImageCache
    from data_engine.annotation_tool.backend.mask_store import MaskStore
    from data_engine.annotation_tool.backend.task_queue import TaskQueue

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    out, privacy = Path(cfg.out), build_privacy(cfg)
    source = open_corpus(cfg, privacy)
    tokens = read_tokens(out / "tokens.json", list(cfg.annotators), list(cfg.reviewers))
    access = AccessTokens(tokens)
    images = ImageCache(source)
    embedding_service = None
    if cfg.checkpoint:
        proposals = None if cfg.proposals is None else build(cfg.proposals)
        embedding_service = EmbeddingService(Path(cfg.checkpoint), images, out, device=cfg.device, proposals=proposals)
    database = Database(out / "store.sqlite")
    queue = TaskQueue(database, lease_s=cfg.lease_s)
    references = sample_references(source, cfg.num_audit_images, cfg.seed) if cfg.action == "audit" else source.references
    new = queue.add_images(references, overlap=cfg.overlap)
    console.print(f"{cfg.corpus}: {len(references)} images, {new} of them new to {out}; tasks: {queue.states()}")
    context = AppContext(
        queue=queue,
        commits=MaskStore(database, queue),
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
    """Finished images that are not in a shard yet."""
    from data_engine.annotation_tool.backend.database import Database
    from data_engine.annotation_tool.backend.image_cache import ImageCache
    from data_engine.annotation_tool.backend.shard_export import ShardExporter

    privacy, out = build_privacy(cfg), Path(cfg.out) / "shards"
    writer = ShardExporter(
        Database(Path(cfg.out) / "store.sqlite"),
        ImageCache(open_corpus(cfg, privacy)),
        out,
        privacy=privacy,
        stage=cfg.stage,
        reviewed_only=cfg.reviewed_only,
        config=annotation_config_hash(cfg),
        images_per_shard=cfg.images_per_shard,
    )
    for shard in (shards := writer.write()):
        console.print(f"wrote {shard}")
    if not shards:
        console.print("nothing is finished that was not written before")
    elif privacy.detectors:
        console.print(f"what was covered: {write_privacy_review(out)}")
    if cfg.privacy.take_down and (left := count_listed_images(out, Path(cfg.privacy.take_down))):
        drop = f"sam-data repair {out} --drop-ids {cfg.privacy.take_down} --out NEW"
        console.print(f"{left} images of {cfg.privacy.take_down} are in shards that were written before: {drop} leaves them out")


def print_summary(cfg: DictConfig) -> None:
    """Costs and agreement as JSON."""
    from data_engine.annotation_tool.backend.database import Database
    from data_engine.annotation_tool.backend.summary import summary

    print(json.dumps(summary(Database(Path(cfg.out) / "store.sqlite")), indent=1))


def build_privacy(cfg: DictConfig) -> Privacy:
    """What covers the pictures; written down in `out` before the first one is shown.

    Raises ConfigError when pictures of `out` were shown covered otherwise, and as `Privacy` does.
    """
    privacy: Privacy = build(cfg.privacy)
    path, now = Path(cfg.out) / "privacy.json", privacy.identity()
    if not path.with_name("store.sqlite").exists():
        atomic_write_bytes(path, (json.dumps({"privacy": now}) + "\n").encode())
    elif (before := _shown_with(path)) != now:
        wanted = "privacy=none" if before == "none" else "the privacy=... and values of it that they were shown with"
        message = f"the pictures in {cfg.out} were shown with privacy {before}, this is {now}"
        raise ConfigError(f"{message}: give {wanted}, or another out=")
    return privacy


def _shown_with(path: Path) -> str:
    if not path.is_file():
        return "none"  # a store of a version that covered nothing
    try:
        return str(json.loads(path.read_bytes())["privacy"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} does not say how pictures were covered ({type(error).__name__}: {error})"
        raise ConfigError(f"{message}: write into it what sam-annotate was started with, or name another out=") from error


def open_corpus(cfg: DictConfig, privacy: Privacy) -> Source:
    """The corpus, covered. What it leaves out is said."""
    source = privacy.redact_source(open_source(cfg.corpus))
    for name, reason in source.skipped.items():
        console.print(f"not listed: {name} ({reason})")
    return source


def sample_references(source: Source, num_images: int, seed: int) -> list[ImageReference]:
    """Images drawn at random, in the order of the source; the same ones for the same seed. Raises ConfigError without masks."""
    drawn = np.random.default_rng(seed).permutation(len(source.references))[:num_images]
    references = [source.references[place] for place in sorted(drawn.tolist())]
    if not any(reference.sample for reference in references):
        raise ConfigError("an audit corrects masks that are there, and these are pictures alone: give corpus= shards")
    return references


def annotation_config_hash(cfg: DictConfig) -> str:
    """Hash of what decides the masks."""
    return config_hash({name: value for name, value in to_plain(cfg).items() if name not in HASH_IGNORED_KEYS})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
