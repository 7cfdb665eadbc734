"""The model behind the page: embeddings made ahead of the annotators, and the decoder, here and as ONNX for the browser."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.image_cache import ImageCache
from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.errors import CheckpointError, SamTrainError
from sam_train.files import atomic_write_bytes
from sam_train.geometry import Resize
from sam_train.inference import EmbeddingCache, EmbeddingMaskGenerator, GeneratedMask, MaskGenerator, Predictor, generate_masks
from sam_train.structures import PointLabel, Prediction, Prompts

log = logging.getLogger(__name__)
DECODER_TOLERANCE = 1e-4
_WAITING = 10_000


class EmbeddingService:
    """Embeddings of `images` by the model of a checkpoint, made one at a time in a thread of its own.

    folder: where embeddings (float16) and the decoder are kept, by the checkpoint's hash. keep: embeddings held in memory.
    proposals: makes masks that annotators are shown, from the same embeddings if it can. Raises what `load_checkpoint` does, and
    CheckpointError or ConfigError for proposals that this model cannot make.
    """

    def __init__(
        self,
        checkpoint: Path,
        images: ImageCache,
        folder: Path,
        *,
        device: str = "cpu",
        keep: int = 32,
        proposals: MaskGenerator | None = None,
    ) -> None:
        self.checkpoint = checkpoint_hash(checkpoint)
        self.model = load_checkpoint(checkpoint, device)
        self.device, self.images, self.folder, self.keep = device, images, folder, keep
        self.proposals = proposals
        if isinstance(proposals, EmbeddingMaskGenerator):
            proposals.check_model(self.model)
        self._proposed: dict[str, list[GeneratedMask]] = {}
        self._cache = EmbeddingCache(folder / "embeddings", checkpoint_sha256=self.checkpoint)
        self._predictor = Predictor(self.model, self._cache)
        self._path = checkpoint
        self._made: OrderedDict[str, Tensor] = OrderedDict()
        self._failed: dict[str, str] = {}
        self._wanted: deque[str] = deque(maxlen=_WAITING)
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="embeddings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the embedding at hand and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def prefetch(self, keys: Sequence[str]) -> None:
        """These are next: made when nobody waits for another."""
        with self._changed:
            self._wanted.extend(key for key in keys if key not in self._made and key not in self._wanted)
            self._changed.notify_all()

    def embedding(self, key: str, checkpoint: str) -> Tensor | None:
        """float16, E x h x w; None while it is made, which this asks for with the word that somebody waits.

        Raises HttpError: 409 for another checkpoint, 422 when it cannot be made.
        """
        self.refuse_another(checkpoint)
        with self._changed:
            if key in self._failed:
                raise HttpError(422, f"no embedding of {key}: {self._failed[key]}")
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
            if key in self._wanted:
                self._wanted.remove(key)
            self._wanted.appendleft(key)
            self._changed.notify_all()
        return None

    def request_proposals(self, key: str) -> list[GeneratedMask] | None:
        """The masks to show, surest first; None while they are made. Raises as `embedding`."""
        return None if self.embedding(key, self.checkpoint) is None else self._proposed.get(key)

    def refuse_another(self, checkpoint: str) -> None:
        """Raise HttpError (409) for the hash of another checkpoint: its decoder would read these embeddings wrong."""
        if checkpoint != self.checkpoint:
            message = f"this server works with checkpoint {self.checkpoint[:12]}, not {checkpoint[:12]!r}: load the page again"
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
        """The model's answer to one prompt, on the CPU.

        prompts: [x, y, label] in the image frame, a box as two of them, no padding. mask_logits: 1 x 1 x h x w.
        """
        numbers = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.float32, device=self.device)
        points = Resize(*image_hw, self.model.image_size).points_to_model(numbers[None, :, :2])
        labels, index = numbers[None, :, 2].long(), torch.zeros(1, dtype=torch.long, device=self.device)
        has_box = bool((labels >= PointLabel.BOX_TOP_LEFT).any())
        make = Prompts if has_box else Prompts.from_points  # which adds the padding point
        prompt = make(image_index=index, points_xy=points, point_labels=labels)
        prompt = prompt if mask_logits is None else prompt.with_mask(torch.from_numpy(mask_logits).to(self.device))
        answer = self.model.decode(embedding.float().to(self.device)[None], prompt, multimask_output=multimask_output)
        return Prediction(mask_logits=answer.mask_logits.cpu(), iou_scores=answer.iou_scores.cpu())

    @cached_property
    def decoder_onnx(self) -> Path | None:
        """The decoder without its last enlargement, which the page does itself; made once for a checkpoint.

        None where the extra `onnx` is not installed. Raises CheckpointError when it does not answer as torch does.
        """
        path = self.folder / "decoders" / f"{self.checkpoint}.onnx"
        if path.is_file():
            return path
        try:
            from sam_train.inference.export import ExportOptions, decoder_model
        except ModuleNotFoundError as error:
            log.warning("%s is not installed (pip install 'sam-train[onnx]'): the server decodes for the pages", error.name)
            return None
        sam = self.model if self.device == "cpu" else load_checkpoint(self._path)
        metadata = {"checkpoint_sha256": self.checkpoint, "image_size": str(sam.image_size)}
        data = decoder_model(sam, ExportOptions(), full_size=False, metadata=metadata).SerializeToString()
        _check(data, sam)
        atomic_write_bytes(path, data)
        return path

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                key = self._wanted.popleft()
                if key in self._made or key in self._failed:
                    continue
            self._make(key)

    def _make(self, key: str) -> None:
        try:
            image = self.images.pixels(key)
            if (embedding := self._cache.load(image)) is None:
                self._predictor.set_image(image)  # which writes it
                embedding = self._cache.load(image)
            if embedding is None:
                raise SamTrainError(f"{self._cache.path_of(image)} cannot be read back: is the disk all right?")
            self._keep(key, embedding)
            self._proposed[key] = self._propose(image, embedding)
        except (SamTrainError, OSError, ValueError, RuntimeError) as error:  # this picture's page is told, the others go on
            log.warning("no embedding of %s: %s", key, error)
            with self._changed:
                self._failed[key] = str(error)

    def _keep(self, key: str, embedding: Tensor) -> None:
        with self._changed:
            self._made[key] = embedding.half()
            while len(self._made) > self.keep:
                self._proposed.pop(self._made.popitem(last=False)[0], None)

    def _propose(self, image: np.ndarray, embedding: Tensor) -> list[GeneratedMask]:
        if self.proposals is None:
            return []
        return generate_masks(self.proposals, self.model, image, embedding.to(self.device)[None])[0]


def _check(data: bytes, model: object) -> None:
    """Raise CheckpointError unless the graph answers as torch does, on random prompts."""
    from sam_train.inference.export import ExportOptions
    from sam_train.inference.export.parity import open_session, random_inputs, torch_outputs

    with TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        path.write_bytes(data)
        session = open_session(path)
    names = {given.name for given in session.get_inputs()}
    for inputs in random_inputs(model):  # type: ignore[arg-type]
        expected = torch_outputs(model, ExportOptions(), inputs)["low_res_masks"]  # type: ignore[arg-type]
        (actual,) = session.run(["low_res_masks"], {name: value for name, value in inputs.items() if name in names})
        difference = float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= DECODER_TOLERANCE:
            raise CheckpointError(f"the decoder as ONNX is off from torch by {difference:.2g} of the largest value")
