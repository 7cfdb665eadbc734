"""Model of the annotation server: embeddings computed in advance, and the decoder, on the server and as ONNX for browsers."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.image_cache import ImageCache
from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.errors import CheckpointError, SamTrainError, install_extra
from sam_train.files import atomic_write_bytes
from sam_train.geometry import Resize
from sam_train.inference import EmbeddingCache, EmbeddingMaskGenerator, GeneratedMask, MaskGenerator, Predictor, generate_masks
from sam_train.structures import PointLabel, Prediction, Prompts

log = logging.getLogger(__name__)
DECODER_TOLERANCE = 1e-4
"""Largest allowed difference between the ONNX decoder and torch, relative to the largest value."""
_MAX_PENDING = 10_000


class EmbeddingService:
    """Computes embeddings of `images` with the model of a checkpoint, one at a time, in a background thread.

    folder: stores embeddings (float16) and the exported decoder by the checkpoint's hash. max_cached: number of embeddings kept
    in memory. mask_generator: generates proposed masks, from the same embeddings if it can. Raises the errors of
    `load_checkpoint`, and CheckpointError or ConfigError for a mask generator that does not fit the model.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        images: ImageCache,
        folder: Path,
        *,
        device: str = "cpu",
        max_cached: int = 32,
        mask_generator: MaskGenerator | None = None,
    ) -> None:
        self.checkpoint = checkpoint_hash(checkpoint)
        self.model = load_checkpoint(checkpoint, device)
        self.device, self.images, self.folder, self.max_cached = device, images, folder, max_cached
        self.mask_generator = mask_generator
        if isinstance(mask_generator, EmbeddingMaskGenerator):
            mask_generator.check_model(self.model)
        self._proposals: dict[str, list[GeneratedMask]] = {}
        self._cache = EmbeddingCache(folder / "embeddings", self.model)
        self._predictor = Predictor(self.model, self._cache)
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._errors: dict[str, str] = {}
        self._pending: deque[str] = deque(maxlen=_MAX_PENDING)
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="embeddings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the current embedding and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def prefetch(self, keys: Sequence[str]) -> None:
        """Compute the embeddings of these images when no requested one is pending."""
        with self._changed:
            self._pending.extend(key for key in keys if key not in self._embeddings and key not in self._pending)
            self._changed.notify_all()

    def request_embedding(self, key: str, checkpoint: str) -> Tensor | None:
        """Return the embedding of an image, float16, E x h x w; None while it is computed, with priority over prefetched ones.

        Raises HttpError: 409 for another checkpoint, 422 if the embedding cannot be computed.
        """
        self.check_checkpoint(checkpoint)
        with self._changed:
            if key in self._errors:
                raise HttpError(422, f"the embedding of {key} cannot be computed: {self._errors[key]}")
            if key in self._embeddings:
                self._embeddings.move_to_end(key)
                return self._embeddings[key]
            if key in self._pending:
                self._pending.remove(key)
            self._pending.appendleft(key)
            self._changed.notify_all()
        return None

    def request_proposals(self, key: str) -> list[GeneratedMask] | None:
        """Return the proposed masks of an image, highest score first; None while they are computed.

        Raises the errors of `request_embedding`.
        """
        return None if self.request_embedding(key, self.checkpoint) is None else self._proposals.get(key)

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise HttpError (409) for the hash of another checkpoint: its decoder does not fit these embeddings."""
        if checkpoint != self.checkpoint:
            message = f"this server uses checkpoint {self.checkpoint[:12]}, not {checkpoint[:12]!r}: reload the page"
            raise HttpError(409, message)

    @torch.inference_mode()
    def decode(
        self,
        embedding: Tensor,
        image_hw: tuple[int, int],
        prompts: Sequence[Sequence[float]],
        *,
        mask_logits: np.ndarray | None,
        multimask_output: bool,
    ) -> Prediction:
        """Return the model's prediction for one prompt, on the CPU: logits 1 x M x h x w and predicted IoUs 1 x M.

        prompts: [x, y, label] in the image frame, a box as its two corners, without padding points. mask_logits: mask prompt,
        1 x 1 x h x w.
        """
        labelled_points = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.float32, device=self.device)
        points = Resize(*image_hw, self.model.image_size).points_to_model(labelled_points[None, :, :2])
        labels, index = labelled_points[None, :, 2].long(), torch.zeros(1, dtype=torch.long, device=self.device)
        has_box = bool((labels >= PointLabel.BOX_TOP_LEFT).any())
        make_prompts = Prompts if has_box else Prompts.from_points  # from_points adds the padding point
        prompt = make_prompts(image_index=index, points_xy=points, point_labels=labels)
        prompt = prompt if mask_logits is None else prompt.with_mask(torch.from_numpy(mask_logits).to(self.device))
        prediction = self.model.decode(embedding.float().to(self.device)[None], prompt, multimask_output=multimask_output)
        return Prediction(mask_logits=prediction.mask_logits.cpu(), iou_scores=prediction.iou_scores.cpu())

    @cached_property
    def decoder_onnx(self) -> Path | None:
        """Path of the decoder as ONNX, without the last upscaling, which the page does itself; exported once per checkpoint.

        None if the extra `onnx` is not installed. Raises CheckpointError if the exported decoder and torch disagree.
        """
        path = self.folder / "decoders" / f"{self.checkpoint}.onnx"
        if path.is_file():
            return path
        try:
            from sam_train.inference.export import ExportOptions, decoder_model
        except ModuleNotFoundError as error:
            log.warning("%s is not installed (%s): the server decodes for the pages", error.name, install_extra("onnx"))
            return None
        sam = self.model if self.device == "cpu" else deepcopy(self.model).cpu()
        metadata = {"checkpoint_sha256": self.checkpoint, "image_size": str(sam.image_size)}
        data = decoder_model(sam, ExportOptions(), full_size=False, metadata=metadata).SerializeToString()
        _check_parity(data, sam)
        atomic_write_bytes(path, data)
        return path

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                key = self._pending.popleft()
                if key in self._embeddings or key in self._errors:
                    continue
            self._compute(key)

    def _compute(self, key: str) -> None:
        try:
            image = self.images.pixels(key)
            if (embedding := self._cache.load(image)) is None:
                self._predictor.set_image(image)  # writes it to the cache
                embedding = self._cache.load(image)
            if embedding is None:
                raise SamTrainError(f"{self._cache.embedding_path(image)} was written and cannot be read back: check the disk")
            self._store(key, embedding)
            self._proposals[key] = self._generate_masks(image, embedding)
        except (SamTrainError, OSError, ValueError, RuntimeError) as error:  # reported to this image's page only
            log.warning("cannot compute the embedding of %s: %s", key, error)
            with self._changed:
                self._errors[key] = str(error)

    def _store(self, key: str, embedding: Tensor) -> None:
        with self._changed:
            self._embeddings[key] = embedding.half()
            while len(self._embeddings) > self.max_cached:
                self._proposals.pop(self._embeddings.popitem(last=False)[0], None)

    def _generate_masks(self, image: np.ndarray, embedding: Tensor) -> list[GeneratedMask]:
        if self.mask_generator is None:
            return []
        return generate_masks(self.mask_generator, self.model, image, embedding.to(self.device)[None])[0]


def _check_parity(data: bytes, model: object) -> None:
    """Raise CheckpointError unless the ONNX graph and torch agree on random prompts."""
    from sam_train.inference.export import ExportOptions
    from sam_train.inference.export.parity import open_session, random_inputs, torch_outputs

    with TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        path.write_bytes(data)
        session = open_session(path)
    names = {node.name for node in session.get_inputs()}
    for inputs in random_inputs(model):  # type: ignore[arg-type]
        expected = torch_outputs(model, ExportOptions(), inputs)["low_res_masks"]  # type: ignore[arg-type]
        (actual,) = session.run(["low_res_masks"], {name: value for name, value in inputs.items() if name in names})
        difference = float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= DECODER_TOLERANCE:
            allowed = f"at most {DECODER_TOLERANCE:g} is allowed"
            raise CheckpointError(f"the ONNX decoder differs from torch by {difference:.2g} of the largest value: {allowed}")
