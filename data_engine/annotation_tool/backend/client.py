"""HTTP client of the annotation server for programs, and a predictor that decodes on the server."""

from __future__ import annotations

import base64
import http.client
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.mask_store import AnnotatedMask
from sam_train.errors import ConfigError
from sam_train.geometry import Resize
from sam_train.inference.mask_rasterizer import stability_scores
from sam_train.structures import PointLabel, Prediction, Prompts


class AnnotationClient:
    """HTTP client of one annotator, over one connection.

    url: address of the server. max_attempts: number of times a request is sent when its connection breaks; every request is
    idempotent. on_request: called after each request with its route and its duration in seconds.

    Methods raise HttpError for an error response of the server and ConnectionError if the server does not respond.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        max_attempts: int = 5,
        timeout_s: float = 60.0,
        on_request: Callable[[str, float], None] = lambda route, seconds: None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"{url!r} is not a server address: expected http://HOST:PORT")
        self._token, self._max_attempts, self._on_request = token, max_attempts, on_request
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def __enter__(self) -> AnnotationClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def session(self) -> dict[str, Any]:
        """Return the user, the model and the settings of the page."""
        return self._json("GET", "/api/session")

    def next_task(self) -> dict[str, Any] | None:
        """Lease and return the next task; None if there is none."""
        task: dict[str, Any] | None = self._json("POST", "/api/next")["task"]
        return task

    def proposals(self, task: int, timeout_s: float = 300.0) -> list[dict[str, Any]]:
        """Return the masks of a task, with those that the model proposes, once they are computed. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status, _, data = self.request("POST", f"/api/tasks/{task}/proposals")
            if status == 200:
                return list(json.loads(data)["masks"])
            time.sleep(0.1)
        raise TimeoutError(f"task {task} has no proposals after {timeout_s:g} s")

    def put_mask(self, task: int, annotated: AnnotatedMask, *, mask: str | None = None, commit: str | None = None) -> str:
        """Commit a mask and return its id."""
        mask = mask or str(uuid.uuid4())
        body = {"task": task, "mask": mask, "kind": "put", **asdict(annotated)}
        body["prompts"] = [[x, y, int(label)] for x, y, label in annotated.prompts]
        self._json("PUT", f"/api/commits/{commit or uuid.uuid4()}", body)
        return mask

    def delete_mask(self, task: int, mask: str, *, commit: str | None = None) -> None:
        """Delete a mask."""
        self._json("PUT", f"/api/commits/{commit or uuid.uuid4()}", {"task": task, "mask": mask, "kind": "delete"})

    def mark_done(self, task: int) -> None:
        """Mark a task as done."""
        self._json("POST", f"/api/tasks/{task}/done")

    def skip_task(self, task: int, reason: str) -> None:
        """Skip a task."""
        self._json("POST", f"/api/tasks/{task}/skip", {"reason": reason})

    def wait_for_embedding(self, task: int, checkpoint: str, *, timeout_s: float = 600.0) -> Float[Tensor, "E h w"]:
        """Poll until the image embedding of a task is computed and return it. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status, headers, data = self.request("GET", f"/api/tasks/{task}/embedding?checkpoint={checkpoint}")
            if status == 200:
                shape = [int(side) for side in headers["x-shape"].split(",")]
                return torch.from_numpy(np.frombuffer(data, "<f2").astype(np.float32).reshape(shape))
            time.sleep(0.1)
        raise TimeoutError(f"task {task} has no embedding after {timeout_s:g} s")

    def decode(
        self,
        task: int,
        checkpoint: str,
        prompts: Sequence[Sequence[float]],
        *,
        multimask_output: bool,
        mask_logits: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode a prompt ([x, y, label] in the image frame) and return logits, M x h x w, and predicted IoUs, M."""
        encoded_mask = None if mask_logits is None else base64.b64encode(mask_logits.astype("<f2").tobytes()).decode()
        body: dict[str, object] = {"checkpoint": checkpoint, "prompts": [[x, y, int(label)] for x, y, label in prompts]}
        body |= {"multimask_output": multimask_output, "mask_logits": encoded_mask}
        while True:
            status, headers, data = self.request("POST", f"/api/tasks/{task}/decode", body)
            if status == 200:
                break
            time.sleep(0.1)
        shape = [int(side) for side in headers["x-shape"].split(",")]
        scores = np.array([float(score) for score in headers["x-iou-scores"].split(",")], np.float32)
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape), scores

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request and return status, headers (lower-case names) and content.

        Raises HttpError for a status of 400 or more, ConnectionError if every attempt fails.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}"} | ({"Content-Type": "application/json"} if data else {})
        for attempts_left in reversed(range(self._max_attempts)):
            started = time.perf_counter()
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                content = response.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if not attempts_left:
                    raise ConnectionError(f"{method} {path}: {error or type(error).__name__}") from error
                time.sleep(0.2 * (self._max_attempts - attempts_left))
        self._on_request(f"{method} {_route(path)}", time.perf_counter() - started)
        if response.status >= 400:
            raise HttpError(response.status, f"{method} {path}: {_error_message(content)}")
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.request(method, path, body)[2])
        return content


class RemotePredictor:
    """A predictor (`PredictorLike`) for one task's image that decodes on the server, with one request per prompt."""

    def __init__(self, client: AnnotationClient, task: dict[str, Any], model: Mapping[str, Any]) -> None:
        self._client, self._task, self._checkpoint = client, task["id"], model["checkpoint"]
        self._resize = Resize(task["height"], task["width"], model["image_size"])

    @property
    def device(self) -> torch.device:
        """Device of the predictions: always the CPU."""
        return torch.device("cpu")

    def predict_prompts(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> Prediction:
        """Predict as `Predictor.predict_prompts` does, for the task's image. `min_iou` has no effect."""
        logits, scores = zip(*(self._decode(prompts[i : i + 1], multimask_output) for i in range(len(prompts))), strict=True)
        return Prediction(mask_logits=torch.from_numpy(np.stack(logits)), iou_scores=torch.from_numpy(np.stack(scores)))

    def masks_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Bool[Tensor, "N M H W"]:
        """Return masks at the resolution of the task's image. `image_index` is ignored, as there is one image."""
        return self._resize.logits_to_image(mask_logits) > 0

    def stability_scores(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M"]:
        """Return stability scores at the resolution of the task's image. `image_index` is ignored, as there is one image."""
        return stability_scores(mask_logits, self._resize)

    def _decode(self, prompt: Prompts, multimask_output: bool) -> tuple[np.ndarray, np.ndarray]:
        points = torch.cat([prompt.points_xy[0], prompt.point_labels[0, :, None].float()], 1).tolist()
        return self._client.decode(
            self._task,
            self._checkpoint,
            [point for point in points if point[2] != PointLabel.PADDING],
            multimask_output=multimask_output,
            mask_logits=None if prompt.mask_logits is None else prompt.mask_logits.numpy(),
        )


def _route(path: str) -> str:
    """Return a path with its numbers and ids replaced by `*`."""
    parts = path.partition("?")[0].split("/")
    return "/".join("*" if any(letter.isdigit() for letter in part) else part for part in parts)


def _error_message(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(content[:200])
