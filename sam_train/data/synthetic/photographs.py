"""The photographs inside the wheels of scikit-image and scikit-learn, and random crops of them."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from sam_train.errors import ConfigError, install_extra

_FILES = {
    ("skimage", "data"): {
        "astronaut.png": "astronaut",
        "brick.png": "brick",
        "camera.png": "cameraman",
        "cell.png": "cell",
        "chelsea.png": "cat",
        "coffee.png": "coffee",
        "coins.png": "coins",
        "grass.png": "grass",
        "gravel.png": "gravel",
        "hubble_deep_field.jpg": "galaxies",
        "ihc.png": "tissue",
        "moon.png": "moon",
        "motorcycle_left.png": "motorcycle",
        "motorcycle_right.png": "motorcycle",
        "retina.jpg": "retina",
        "rocket.jpg": "rocket",
    },
    ("sklearn", "datasets/images"): {"china.jpg": "temple", "flower.jpg": "flower"},
}
PHOTOGRAPH_NAMES = tuple(name for files in _FILES.values() for name in files.values())
"""The subject of each photograph of `load_photographs`, in one word."""
_INSTALL = f"install the photographs with {install_extra('quickstart')}"
_LONGEST_SIDE_PX = 768  # larger photographs are shrunk once, so that one crop scale fits all


@lru_cache(maxsize=1)
def load_photographs() -> tuple[np.ndarray, ...]:
    """Return all photographs, read-only HWC uint8 RGB, always in the same order. They are read once per process.

    Raises ConfigError if a package or one of its files is missing.
    """
    return tuple(_read(_package_folder(package) / folder / name) for (package, folder), files in _FILES.items() for name in files)


def random_crop(
    rng: np.random.Generator, photograph: np.ndarray, *, height: int, width: int, zoom: tuple[float, float], rotate: bool
) -> np.ndarray:
    """Return a random window of an HWC uint8 photograph as height x width x 3 float32 in [0, 255].

    zoom: range of the output pixels per pixel of the photograph, drawn log-uniformly. If the photograph is too small for the
        zoom, the largest window of that aspect ratio is taken. The window is mirrored at random.
    rotate: rotate by a random number of quarter turns, which suits a texture but not a backdrop.
    """
    if rotate:
        photograph = np.rot90(photograph, int(rng.integers(4)))
    drawn_zoom = np.exp(rng.uniform(*np.log(zoom)))
    shrink = min(1.0, photograph.shape[0] * drawn_zoom / height, photograph.shape[1] * drawn_zoom / width)
    rows, columns = (max(1, int(side * shrink / drawn_zoom)) for side in (height, width))
    top = rng.integers(photograph.shape[0] - rows + 1)
    left = rng.integers(photograph.shape[1] - columns + 1)
    window = photograph[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    interpolation = cv2.INTER_AREA if rows > height else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(window), (width, height), interpolation=interpolation).astype(np.float32)


def _package_folder(package: str) -> Path:
    spec = find_spec(package)  # finds the folder without importing the package, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the synthetic corpus needs photographs of the package {package}, which is not installed: {_INSTALL}")
    return Path(spec.submodule_search_locations[0])


def _read(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if pixels is None:
        raise ConfigError(f"expected a photograph at {path}, which is missing or does not decode: {_INSTALL}")
    rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    scale = _LONGEST_SIDE_PX / max(rgb.shape[:2])
    if scale < 1:
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    rgb.flags.writeable = False  # the cache returns the same array to every caller
    return rgb
