"""The materials of scenes: backdrops, textures and shapes, from photographs or from computed patterns.

The two materials share neither a texture nor a shape, so scenes of one are unseen data for a model trained on the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from sam_train.data.synthetic import compositing
from sam_train.data.synthetic.more_shapes import random_contours
from sam_train.data.synthetic.patterns import random_colour, random_pattern
from sam_train.data.synthetic.photographs import PHOTOGRAPH_NAMES, load_photographs, random_crop
from sam_train.data.synthetic.shapes import random_polygon, rasterize
from sam_train.errors import ConfigError

Pixels = Float[np.ndarray, "H W 3"]


@dataclass(frozen=True, slots=True)
class Texture:
    """Pixels of the size of the image, and the subject that they show, in one word."""

    pixels: Pixels
    subject: str


class Material(ABC):
    """Random backdrops, textures and shapes of a scene. Pixels are H x W x 3 float32 in [0, 255]."""

    @abstractmethod
    def backdrop(self, rng: np.random.Generator, *, height: int, width: int) -> Pixels:
        """Return a random background."""

    @abstractmethod
    def texture(self, rng: np.random.Generator, *, height: int, width: int, true_colours: bool) -> Texture:
        """Return a random texture; `true_colours` as in `compose_scene`."""

    @abstractmethod
    def shape(self, rng: np.random.Generator) -> tuple[list[Float[np.ndarray, "V 2"]], str]:
        """Return the contours of a random shape, as in `more_shapes.random_contours`, and its name."""


class PhotographMaterial(Material):
    """Crops of the photographs of scikit-image and scikit-learn, and the shapes of `shapes`.

    Raises ConfigError if the photographs are not installed.
    """

    def __init__(self) -> None:
        self.photographs = load_photographs()

    def backdrop(self, rng: np.random.Generator, *, height: int, width: int) -> Pixels:
        """Return a crop of a photograph, at times with less contrast."""
        photograph = self.photographs[rng.integers(len(self.photographs))]
        crop = random_crop(rng, photograph, height=height, width=width, zoom=(0.4, 1.2), rotate=False)
        if rng.random() < 0.4:
            mean = crop.mean((0, 1))
            crop = mean + (crop - mean) * np.float32(rng.uniform(0.4, 0.9))
        return crop

    def texture(self, rng: np.random.Generator, *, height: int, width: int, true_colours: bool) -> Texture:
        """Return a crop of a photograph, slightly recoloured unless `true_colours` is set."""
        pixels, index = compositing.random_texture(rng, self.photographs, height=height, width=width, true_colours=true_colours)
        return Texture(pixels, PHOTOGRAPH_NAMES[index])

    def shape(self, rng: np.random.Generator) -> tuple[list[Float[np.ndarray, "V 2"]], str]:
        """Return one of the smooth shapes without holes."""
        polygon, name = random_polygon(rng)
        return [polygon], name


class PatternMaterial(Material):
    """Computed patterns and the shapes of `more_shapes`; no photograph is read."""

    def backdrop(self, rng: np.random.Generator, *, height: int, width: int) -> Pixels:
        """Return a pattern, mostly with translucent or blurred shapes that are not annotated, like the clutter in photographs."""
        canvas = random_pattern(rng, height=height, width=width)
        side = np.sqrt(height * width)
        for _ in range(int(rng.integers(3, 25)) if rng.random() < 0.6 else 0):
            radius = side * np.exp(rng.uniform(np.log(0.04), np.log(0.5)))
            centre_xy = rng.uniform(0, 1, 2) * (width, height)
            contours, _ = self.shape(rng)
            coverage = rasterize([contour * radius + centre_xy for contour in contours], height=height, width=width)
            if rng.random() < 0.5:
                coverage = cv2.GaussianBlur(coverage, (0, 0), rng.uniform(0.5, 4))
            is_textured, opacity = rng.random() < 0.3, np.float32(rng.uniform(0.2, 0.8))
            colour = random_pattern(rng, height=height, width=width) if is_textured else random_colour(rng)
            canvas = canvas + (colour - canvas) * (coverage * opacity)[..., None]
        return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 2.5)) if rng.random() < 0.3 else canvas

    def texture(self, rng: np.random.Generator, *, height: int, width: int, true_colours: bool) -> Texture:
        """Return a pattern. Raises ConfigError for `true_colours`, because a pattern shows no object to recognise."""
        if true_colours:
            raise ConfigError("true colours are those of photographs: use them with the material 'photographs'")
        return Texture(random_pattern(rng, height=height, width=width), "pattern")

    def shape(self, rng: np.random.Generator) -> tuple[list[Float[np.ndarray, "V 2"]], str]:
        """Return one of the shapes with corners, holes or thin parts."""
        return random_contours(rng)


MATERIALS: dict[str, type[Material]] = {"photographs": PhotographMaterial, "patterns": PatternMaterial}
"""The materials by name."""
