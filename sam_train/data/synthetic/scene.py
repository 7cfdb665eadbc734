"""One synthetic scene: a backdrop, and objects over it, which consist of parts and sub-parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam_train.data.synthetic import compositing
from sam_train.data.synthetic.materials import MATERIALS, Material, Texture
from sam_train.data.synthetic.shapes import rasterize

MIN_SIDE_PX = 64
_MIN_AREA = 0.0015  # smallest area of a mask, as a share of the image
_MIN_VISIBLE = 0.35  # smallest visible share of an object's own area
_MAX_PARENT_SHARE = 0.85  # a part that covers more of its parent is not distinguishable from it
_RADIUS = (0.065, 0.36)  # range of an object's radius, in units of the square root of the image's area


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticScene:
    """An image, and the visible masks of all objects and parts in it."""

    image: np.ndarray
    """H x W x 3 uint8 RGB."""
    masks: np.ndarray
    """N x H x W bool. A whole includes its parts; a mask of level 1 or 2 lies inside a mask of the previous level."""
    levels: tuple[int, ...]
    """Level of each mask: 0 whole, 1 part, 2 sub-part."""
    names: tuple[str, ...]
    """Name of each mask: its shape and what it shows, such as "round coffee", "star-shaped cat" or "hollow pattern".

    A part that shows its parent's texture in another colour has the second word of its parent. Shapes may be clipped by the
    frame or by the parent, and partly occluded.
    """


def compose_scene(
    seed: int, *, height: int, width: int, true_colours: bool = False, material: str = "photographs"
) -> SyntheticScene:
    """Return the scene of a seed and size, the same at every call: about ten masks, in rare cases very few.

    material: "photographs" or "patterns", see `materials`.
    true_colours: objects keep the colours of their photograph and show much of it, so that an object's name can be recognised
        in the image. Boundaries may then lack contrast, and a part shows a photograph of its own instead of its parent's in
        another colour.

    Raises ValueError for a side under 64 pixels, a side more than four times the other or an unknown material, ConfigError if
    the photographs are not installed, or for `true_colours` with patterns.
    """
    if min(height, width) < MIN_SIDE_PX or max(height, width) > 4 * min(height, width):
        raise ValueError(
            f"a scene of {height} x {width} has no room for its objects: "
            f"give sides of at least {MIN_SIDE_PX} pixels, neither more than four times the other"
        )
    if material not in MATERIALS:
        raise ValueError(f"material is {material!r}: expected one of {', '.join(MATERIALS)}")
    composer = _SceneComposer(
        np.random.default_rng(seed), MATERIALS[material](), height=height, width=width, true_colours=true_colours
    )
    composer.add_objects()
    return composer.finish()


@dataclass(frozen=True, slots=True)
class _Silhouette:
    """A shape at its place in the image."""

    coverage: np.ndarray
    shape: str


@dataclass(slots=True, kw_only=True)
class _Layer:
    level: int
    parent: _Layer | None
    coverage: np.ndarray
    texture: Texture
    visible: np.ndarray
    area: int
    name: str

    def is_inside(self, other: _Layer) -> bool:
        return self is other or (self.parent is not None and self.parent.is_inside(other))

    def is_kept(self, min_area: float) -> bool:
        """Return whether enough of the layer and of all its parents is visible: a kept part needs a kept whole."""
        area = int(np.count_nonzero(self.visible))
        if area < max(min_area, _MIN_VISIBLE * self.area):
            return False
        if self.parent is None:
            return True
        return area <= _MAX_PARENT_SHARE * int(np.count_nonzero(self.parent.visible)) and self.parent.is_kept(min_area)


class _SceneComposer:
    """A scene under construction. Layers are in painting order."""

    def __init__(self, rng: np.random.Generator, material: Material, *, height: int, width: int, true_colours: bool) -> None:
        self.rng, self.material, self.height, self.width, self.true_colours = rng, material, height, width, true_colours
        self.unit = float(np.sqrt(height * width))
        angle = rng.uniform(np.pi, 2 * np.pi)  # image y points down: one light for all objects, from above
        self.light_xy = (float(np.cos(angle)), float(np.sin(angle)))
        self.canvas = material.backdrop(rng, height=height, width=width)
        self.layers: list[_Layer] = []

    def add_objects(self) -> None:
        """Add 3 to 7 wholes, the large ones mostly first, so that the small ones are not mostly hidden."""
        smallest, largest = np.log(_RADIUS)
        radii = np.exp(self.rng.uniform(smallest, largest, size=int(self.rng.integers(3, 8)))) * self.unit
        order = np.argsort(-radii * self.rng.uniform(0.5, 1.5, len(radii)))
        for radius in radii[order]:
            self._add_object(radius)

    def finish(self) -> SyntheticScene:
        """Return the scene, with sensor noise and the layers of which enough is visible."""
        noise = self.rng.standard_normal(self.canvas.shape, np.float32) * np.float32(self.rng.uniform(0.5, 5))
        image = np.clip(self.canvas + noise, 0, 255).round().astype(np.uint8)
        kept = [layer for layer in self.layers if layer.is_kept(_MIN_AREA * self.unit**2)]
        masks = np.array([layer.visible for layer in kept], bool).reshape(len(kept), self.height, self.width)
        return SyntheticScene(
            image=image,
            masks=masks,
            levels=tuple(layer.level for layer in kept),
            names=tuple(layer.name for layer in kept),
        )

    def _add_object(self, radius: float) -> None:
        centre = self.rng.uniform(0.08, 0.92, 2) * (self.width, self.height)
        silhouette = self._random_silhouette(centre, radius)
        whole = self._add_layer(silhouette, self._random_texture(), parent=None)
        for _ in range(self.rng.choice(3, p=[0.2, 0.45, 0.35])):
            part = self._add_part(whole)
            if part is not None and self.rng.random() < 0.5:
                self._add_part(part)

    def _add_part(self, parent: _Layer) -> _Layer | None:
        """Add a part, clipped to its parent's silhouette; return None if the parent is too small for one."""
        ys, xs = np.nonzero(parent.coverage > 0.5)
        for _ in range(4 if len(xs) else 0):  # a bent silhouette may lie completely outside the frame
            centre = self.rng.integers(len(xs))
            radius = np.sqrt(parent.area / np.pi) * self.rng.uniform(0.4, 0.95)
            unclipped = self._random_silhouette(np.array([xs[centre], ys[centre]]), radius)
            coverage = np.minimum(unclipped.coverage, parent.coverage)
            area = np.count_nonzero(coverage > 0.5)
            if max(0.08 * parent.area, _MIN_AREA * self.unit**2) < area < 0.6 * parent.area:
                return self._add_layer(_Silhouette(coverage, unclipped.shape), self._part_texture(parent), parent=parent)
        return None

    def _part_texture(self, parent: _Layer) -> Texture:
        """Return a photograph of its own or the parent's texture recoloured, with equal probability."""
        has_own_photograph = self.rng.random() < 0.5 or self.true_colours
        amount = self.rng.uniform(0.3, 0.7)
        if has_own_photograph:
            return self._random_texture()
        return Texture(compositing.recolour(self.rng, parent.texture.pixels, amount=amount), parent.texture.subject)

    def _add_layer(self, silhouette: _Silhouette, texture: Texture, *, parent: _Layer | None) -> _Layer:
        self._paint(silhouette.coverage, texture.pixels, parent_coverage=parent.coverage if parent else None)
        mask = silhouette.coverage > 0.5
        layer = _Layer(
            level=parent.level + 1 if parent else 0,
            parent=parent,
            coverage=silhouette.coverage,
            texture=texture,
            visible=mask,
            area=int(np.count_nonzero(mask)),
            name=f"{silhouette.shape} {texture.subject}",
        )
        for earlier in self.layers:
            if not layer.is_inside(earlier):
                earlier.visible = earlier.visible & ~mask
        self.layers.append(layer)
        return layer

    def _paint(self, coverage: np.ndarray, texture: np.ndarray, *, parent_coverage: np.ndarray | None) -> None:
        """Paint shadow, shading and texture in the window that they change, because most objects are small."""
        window = compositing.window_around(coverage, margin=round(0.1 * self.unit))
        canvas, coverage, texture = self.canvas[window], coverage[window], texture[window]
        if not self.true_colours:
            texture = compositing.ensure_contrast(texture, coverage, canvas, difference=self.rng.uniform(20, 60))
        height = self._height_above_ground(is_part=parent_coverage is not None)
        if height > 0:
            offset_xy = (-self.light_xy[0] * height, -self.light_xy[1] * height)
            strength = self.rng.uniform(0.2, 0.6)
            dark = compositing.cast_shadow(canvas, coverage, offset_xy=offset_xy, softness=0.7 * height, strength=strength)
            # The short shadow of a part falls on its parent alone, however close their edges are.
            canvas = dark if parent_coverage is None else compositing.alpha_blend(canvas, dark, parent_coverage[window])
            edge_px, strength = self.unit * self.rng.uniform(0.004, 0.02), self.rng.uniform(0, 0.9)
            texture = compositing.shade(texture, coverage, edge_px=edge_px, strength=strength, light_xy=self.light_xy)
        self.canvas[window] = compositing.alpha_blend(canvas, texture, coverage)

    def _height_above_ground(self, *, is_part: bool) -> float:
        """Draw a height in pixels. An object of height 0 is flat, like a sticker: it has a texture, but no shadow and no rim."""
        if self.rng.random() < (0.5 if is_part else 0.25):
            return 0.0
        return self.unit * self.rng.uniform(*((0.003, 0.008) if is_part else (0.01, 0.03)))

    def _random_silhouette(self, centre_xy: np.ndarray, radius: float) -> _Silhouette:
        contours, shape = self.material.shape(self.rng)
        placed = [contour * radius + centre_xy for contour in contours]
        return _Silhouette(rasterize(placed, height=self.height, width=self.width), shape)

    def _random_texture(self) -> Texture:
        return self.material.texture(self.rng, height=self.height, width=self.width, true_colours=self.true_colours)
