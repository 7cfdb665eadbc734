"""One collage: a photograph as backdrop, and objects of parts of sub-parts over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam_train.data.synthetic import compositing
from sam_train.data.synthetic.photographs import PHOTOGRAPH_NAMES, load_photographs, random_crop
from sam_train.data.synthetic.shapes import random_polygon, rasterize_polygon

MIN_SIDE_PX = 64
_MIN_AREA = 0.0015  # of the image, for a mask to be kept
_MIN_VISIBLE = 0.35  # of its own area
_MAX_PARENT_SHARE = 0.85  # above it, a part is its parent for every practical purpose
_RADIUS = (0.065, 0.36)  # of an object, in units of the square root of the image's area


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticScene:
    """A picture and the visible part of everything that was put into it."""

    image: np.ndarray
    """HWC uint8 RGB."""
    masks: np.ndarray
    """N x H x W bool. A whole includes its parts; a level 1 or 2 mask lies inside a mask of the level below."""
    levels: tuple[int, ...]
    """Of each mask: 0 whole, 1 part, 2 sub-part."""
    names: tuple[str, ...]
    """Of each mask: the shape of its outline and what it is cut from, such as "round coffee" or "star-shaped cat". A part that
    has its parent's material in another colour has its parent's second word. Shapes may be cut off, and partly hidden."""


def compose_scene(seed: int, *, height: int, width: int, true_colours: bool = False) -> SyntheticScene:
    """The scene of this seed and size, the same at every call: some ten masks, in rare cases very few.

    true_colours: objects keep the colours of what they are cut from and show much of it, so that names can be told by looking.
    Outlines may fade, and a part is cut from a photograph of its own instead of its parent's in another colour.

    Raises ValueError for a side under 64 pixels or a side more than four times the other, ConfigError when the
    photographs are not installed.
    """
    if min(height, width) < MIN_SIDE_PX or max(height, width) > 4 * min(height, width):
        raise ValueError(
            f"a scene of {height} x {width} has no room for its objects: "
            f"give sides of at least {MIN_SIDE_PX} pixels, neither more than four times the other"
        )
    collage = _Collage(np.random.default_rng(seed), height=height, width=width, true_colours=true_colours)
    collage.add_objects()
    return collage.finish()


@dataclass(slots=True, kw_only=True)
class _Layer:
    level: int
    parent: _Layer | None
    coverage: np.ndarray
    texture: np.ndarray
    visible: np.ndarray
    area: int
    shape: str
    material: str

    def is_inside(self, other: _Layer) -> bool:
        return self is other or (self.parent is not None and self.parent.is_inside(other))

    def is_kept(self, min_area: float) -> bool:
        """Whether enough of it is visible; a part without its whole would be a level that lies."""
        area = int(np.count_nonzero(self.visible))
        if area < max(min_area, _MIN_VISIBLE * self.area):
            return False
        if self.parent is None:
            return True
        return area <= _MAX_PARENT_SHARE * int(np.count_nonzero(self.parent.visible)) and self.parent.is_kept(min_area)


class _Collage:
    """The picture while it is being made. Layers are in painting order."""

    def __init__(self, rng: np.random.Generator, *, height: int, width: int, true_colours: bool) -> None:
        self.rng, self.height, self.width, self.true_colours = rng, height, width, true_colours
        self.photographs = load_photographs()
        self.unit = float(np.sqrt(height * width))
        angle = rng.uniform(np.pi, 2 * np.pi)  # image y points down: one light for all, from above
        self.light_xy = (float(np.cos(angle)), float(np.sin(angle)))
        self.canvas = self._backdrop()
        self.layers: list[_Layer] = []

    def add_objects(self) -> None:
        """3 to 7 wholes, the large ones mostly first, so that the small ones are not mostly hidden."""
        smallest, largest = np.log(_RADIUS)
        radii = np.exp(self.rng.uniform(smallest, largest, size=int(self.rng.integers(3, 8)))) * self.unit
        order = np.argsort(-radii * self.rng.uniform(0.5, 1.5, len(radii)))
        for radius in radii[order]:
            self._add_object(radius)

    def finish(self) -> SyntheticScene:
        """The scene, with sensor noise and the layers of which enough is visible."""
        noise = self.rng.standard_normal(self.canvas.shape, np.float32) * np.float32(self.rng.uniform(0.5, 5))
        image = np.clip(self.canvas + noise, 0, 255).round().astype(np.uint8)
        kept = [layer for layer in self.layers if layer.is_kept(_MIN_AREA * self.unit**2)]
        masks = np.array([layer.visible for layer in kept], bool).reshape(len(kept), self.height, self.width)
        return SyntheticScene(
            image=image,
            masks=masks,
            levels=tuple(layer.level for layer in kept),
            names=tuple(f"{layer.shape} {layer.material}" for layer in kept),
        )

    def _backdrop(self) -> np.ndarray:
        photograph = self.photographs[self.rng.integers(len(self.photographs))]
        crop = random_crop(self.rng, photograph, height=self.height, width=self.width, zoom=(0.4, 1.2), turn=False)
        if self.rng.random() < 0.4:
            mean = crop.mean((0, 1))
            crop = mean + (crop - mean) * np.float32(self.rng.uniform(0.4, 0.9))
        return crop

    def _add_object(self, radius: float) -> None:
        centre = self.rng.uniform(0.08, 0.92, 2) * (self.width, self.height)
        cover = self._cover(centre, radius)
        whole = self._add_layer(cover, self._texture(), parent=None)
        for _ in range(self.rng.choice(3, p=[0.2, 0.45, 0.35])):
            part = self._add_part(whole)
            if part is not None and self.rng.random() < 0.5:
                self._add_part(part)

    def _add_part(self, parent: _Layer) -> _Layer | None:
        """A part cut off by its parent's outline, or None where the parent is too small for any."""
        ys, xs = np.nonzero(parent.coverage > 0.5)
        for _ in range(4 if len(xs) else 0):  # a bent outline may miss the frame altogether
            seat = self.rng.integers(len(xs))
            radius = np.sqrt(parent.area / np.pi) * self.rng.uniform(0.4, 0.95)
            whole, shape = self._cover(np.array([xs[seat], ys[seat]]), radius)
            coverage = np.minimum(whole, parent.coverage)
            area = np.count_nonzero(coverage > 0.5)
            if max(0.08 * parent.area, _MIN_AREA * self.unit**2) < area < 0.6 * parent.area:
                own = self.rng.random() < 0.5 or self.true_colours
                amount = self.rng.uniform(0.3, 0.7)
                recoloured = (compositing.recolour(self.rng, parent.texture, amount=amount), parent.material) if not own else None
                return self._add_layer((coverage, shape), recoloured or self._texture(), parent=parent)
        return None

    def _add_layer(self, cover: tuple[np.ndarray, str], surface: tuple[np.ndarray, str], *, parent: _Layer | None) -> _Layer:
        """`cover` and `surface` are coverage and texture with what they are called."""
        (coverage, shape), (texture, material) = cover, surface
        self._paint(coverage, texture, parent_coverage=parent.coverage if parent else None)
        mask = coverage > 0.5
        layer = _Layer(
            level=parent.level + 1 if parent else 0,
            parent=parent,
            coverage=coverage,
            texture=texture,
            visible=mask,
            area=int(np.count_nonzero(mask)),
            shape=shape,
            material=material,
        )
        for earlier in self.layers:
            if not layer.is_inside(earlier):
                earlier.visible = earlier.visible & ~mask
        self.layers.append(layer)
        return layer

    def _paint(self, coverage: np.ndarray, texture: np.ndarray, *, parent_coverage: np.ndarray | None) -> None:
        """Shadow, light, pixels: of the window that they change, most objects being small."""
        window = compositing.window_around(coverage, margin=round(0.1 * self.unit))
        canvas, coverage, texture = self.canvas[window], coverage[window], texture[window]
        if not self.true_colours:
            texture = compositing.set_apart(texture, coverage, canvas, difference=self.rng.uniform(20, 60))
        height = self._height_over_ground(is_part=parent_coverage is not None)
        if height > 0:
            offset_xy = (-self.light_xy[0] * height, -self.light_xy[1] * height)
            strength = self.rng.uniform(0.2, 0.6)
            dark = compositing.cast_shadow(canvas, coverage, offset_xy=offset_xy, softness=0.7 * height, strength=strength)
            # The short shadow of a part falls on its parent alone, however close their outlines are.
            canvas = dark if parent_coverage is None else compositing.lay_over(canvas, dark, parent_coverage[window])
            edge_px, strength = self.unit * self.rng.uniform(0.004, 0.02), self.rng.uniform(0, 0.9)
            texture = compositing.shade(texture, coverage, edge_px=edge_px, strength=strength, light_xy=self.light_xy)
        self.canvas[window] = compositing.lay_over(canvas, texture, coverage)

    def _height_over_ground(self, *, is_part: bool) -> float:
        """In pixels; 0 is flat, like a sticker or the marking on a coat: no shadow, no rim, only another texture."""
        if self.rng.random() < (0.5 if is_part else 0.25):
            return 0.0
        return self.unit * self.rng.uniform(*((0.003, 0.008) if is_part else (0.01, 0.03)))

    def _cover(self, centre_xy: np.ndarray, radius: float) -> tuple[np.ndarray, str]:
        outline, shape = random_polygon(self.rng)
        return rasterize_polygon(outline * radius + centre_xy, height=self.height, width=self.width), shape

    def _texture(self) -> tuple[np.ndarray, str]:
        texture, place = compositing.random_texture(
            self.rng, self.photographs, height=self.height, width=self.width, true_colours=self.true_colours
        )
        return texture, PHOTOGRAPH_NAMES[place]
