"""Backgrounds from the texture photographs that ship inside scikit-image."""

from collections.abc import Callable

import numpy as np
import skimage.data
from PIL import Image

Tint = tuple[tuple[float, float, float], ...]

_GRASS_TINTS: Tint = ((0.72, 1.0, 0.45), (0.9, 1.0, 0.55), (1.0, 0.92, 0.62), (0.55, 0.85, 0.45))
_STONE_TINTS: Tint = ((1.0, 1.0, 1.0), (1.0, 0.93, 0.82), (0.88, 0.94, 1.0), (0.95, 0.85, 0.75))
_BRICK_TINTS: Tint = ((1.0, 0.62, 0.5), (1.0, 0.78, 0.62), (0.92, 0.9, 0.88), (0.95, 0.7, 0.45))


def _stretched(pixels: np.ndarray) -> np.ndarray:
    low, high = np.percentile(pixels, (1, 99))
    return (np.clip((pixels - low) / (high - low), 0, 1) * 200 + 25).round().astype(np.uint8)


def _wood() -> np.ndarray:
    """The table beside the coffee cup, along its planks."""
    table = Image.fromarray(skimage.data.coffee()).crop((486, 0, 600, 400))
    return np.asarray(table.resize((table.width * 2, table.height * 2), Image.Resampling.BICUBIC))


_SOURCES: dict[str, tuple[Callable[[], np.ndarray], Tint]] = {
    "brick": (skimage.data.brick, _BRICK_TINTS),
    "grass": (skimage.data.grass, _GRASS_TINTS),
    "gravel": (skimage.data.gravel, _STONE_TINTS),
    "moon": (lambda: _stretched(skimage.data.moon()), _STONE_TINTS),
    "stars": (skimage.data.hubble_deep_field, ()),
    "tissue": (skimage.data.immunohistochemistry, ()),
    "wood": (_wood, ()),
}
TEXTURES: tuple[str, ...] = tuple(_SOURCES)
"""Names of the textures."""

TEXTURE_SOURCES = (
    "brick, gravel: cc0textures.com, CC0",
    "grass: linolafett, CC0",
    "moon: scikit-image",
    "stars (hubble_deep_field): NASA, public domain",
    "tissue (immunohistochemistry): scikit-image, no known copyright restrictions",
    "wood: the table of coffee, Rachel Michetti, CC0",
)


class TextureStore:
    """Loads each texture once."""

    def __init__(self) -> None:
        self._photographs: dict[str, np.ndarray] = {}

    def crop(
        self,
        name: str,
        size: tuple[int, int],
        rng: np.random.Generator,
        scales: tuple[float, float] = (0.8, 1.6),
    ) -> np.ndarray:
        """A random piece of a texture: scaled, turned by quarters, mirrored, tinted.

        Args:
            name: one of ``TEXTURES``.
            size: (width, height) of the piece; beyond its edges a texture goes on mirrored.
            rng: where the chances come from.
            scales: smallest and largest magnification.

        Returns:
            float32 array (height, width, 3) from 0 to 255.
        """
        photograph = self._photograph(name)
        if rng.random() < 0.5 and name != "brick":
            photograph = photograph.transpose(1, 0, 2)
        if rng.random() < 0.5:
            photograph = photograph[:, ::-1]
        scale = rng.uniform(*scales)
        width, height = (max(2, round(side / scale)) for side in size)
        rows = _window(photograph.shape[0], height, rng)
        columns = _window(photograph.shape[1], width, rng)
        piece = Image.fromarray(np.ascontiguousarray(photograph[rows][:, columns]))
        pixels = np.asarray(piece.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        return np.clip(pixels * _tint(_SOURCES[name][1], rng), 0, 255)

    def _photograph(self, name: str) -> np.ndarray:
        if name not in self._photographs:
            image = Image.fromarray(_SOURCES[name][0]()).convert("RGB")
            self._photographs[name] = np.asarray(image)
        return self._photographs[name]


def _window(available: int, needed: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of a random stretch; beyond the end it runs back."""
    start = int(rng.integers(0, max(1, available - needed + 1)))
    indices = np.arange(start, start + needed) % (2 * available)
    return np.where(indices < available, indices, 2 * available - 1 - indices)


def _tint(tints: Tint, rng: np.random.Generator) -> np.ndarray:
    if not tints:
        return rng.uniform(0.85, 1.1, 3).astype(np.float32)
    chosen = np.array(tints[int(rng.integers(len(tints)))])
    strength = rng.uniform(0.3, 1.0)
    return (1 + strength * (chosen - 1)).astype(np.float32)
