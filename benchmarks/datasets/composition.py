"""One image of the embedded data set: an object on a background, among clutter, partly covered."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.datasets.cut_outs import ObjectClass
from benchmarks.datasets.textures import TEXTURES, TextureStore

SIZES = ((500, 375), (500, 333), (480, 360), (500, 400), (375, 500), (333, 500), (400, 400))
_SMALLEST_VISIBLE_SHARE = 0.7


@dataclass(frozen=True)
class Composite:
    """An image, and which of its pixels show the object.

    Attributes:
        image: in mode RGB.
        mask: boolean array (H, W).
        background: name of the texture behind the object.
    """

    image: Image.Image
    mask: np.ndarray
    background: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box of the mask: x, y, width, height in pixels."""
        columns = np.flatnonzero(self.mask.any(axis=0))
        rows = np.flatnonzero(self.mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def compose(
    object_class: ObjectClass,
    cut_outs: list[Image.Image],
    textures: TextureStore,
    rng: np.random.Generator,
    background: str | None = None,
) -> Composite:
    """Make one image.

    Args:
        object_class: what the image shows.
        cut_outs: the ways that it looks, in mode RGBA; one of them is taken.
        textures: for the background, the clutter and what covers the object.
        rng: where the chances come from.
        background: name of the texture; default: any.
    """
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    name = TEXTURES[int(rng.integers(len(TEXTURES)))]
    name = name if background is None else background
    others = [texture for texture in TEXTURES if texture != name]
    scene = textures.crop(name, (width, height), rng)
    scene = scale_light(scene, rng, brightness=(0.7, 1.1))
    for _ in range(int(rng.integers(1, 5))):
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        radius = rng.uniform(0.04, 0.11) * min(width, height)
        nothing = np.zeros((height, width, 1), np.float32)
        scene, _ = _add_patch(scene, nothing, textures, others, rng, centre, radius)

    cut_out = cut_outs[int(rng.integers(len(cut_outs)))]
    colours, alpha = _place(_pose(cut_out, object_class, (width, height), rng), scene.shape, rng)
    colours = scale_light(colours, rng, brightness=(0.75, 1.2))
    scene = scene * (1 - np.float32(0.45) * _shadow(alpha, rng))
    scene = colours * alpha + scene * (1 - alpha)
    if rng.random() < 0.6:
        scene, alpha = cover(scene, alpha, textures, others, rng)

    scene = scene * light_gradient(width, height, rng)
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    scene = scene + np.float32(rng.uniform(0, 4)) * noise
    pixels = np.clip(scene, 0, 255).round().astype(np.uint8)
    return Composite(Image.fromarray(pixels), alpha[..., 0] >= 0.5, name)


def _pose(
    cut_out: Image.Image,
    object_class: ObjectClass,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Image.Image:
    """Mirror, stretch, turn and scale."""
    if object_class.mirrored and rng.random() < 0.5:
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = np.deg2rad(rng.uniform(-object_class.turn, object_class.turn))
    stretch = rng.uniform(0.87, 1.15)
    share = rng.uniform(*object_class.shares)
    width, height = cut_out.width * stretch, cut_out.height
    turned_width = abs(width * np.cos(angle)) + abs(height * np.sin(angle))
    turned_height = abs(width * np.sin(angle)) + abs(height * np.cos(angle))
    scale = share * min(size[0] / turned_width, size[1] / turned_height)
    new_size = (max(8, round(width * scale)), max(8, round(height * scale)))
    # Resizing before turning, because only resizing is antialiased.
    return cut_out.resize(new_size, Image.Resampling.LANCZOS).rotate(
        float(np.rad2deg(angle)), Image.Resampling.BICUBIC, expand=True
    )


def _place(
    cut_out: Image.Image, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put the object anywhere in the image.

    Returns:
        Its colours (height, width, 3) from 0 to 255 and its alpha (height, width, 1) from 0 to 1.
    """
    cut_out = cut_out.crop(cut_out.getchannel("A").getbbox())
    height, width = shape[:2]
    left = int(rng.integers(0, width - cut_out.width + 1))
    top = int(rng.integers(0, height - cut_out.height + 1))
    layer = Image.new("RGBA", (width, height))
    layer.paste(cut_out, (left, top))
    pixels = np.asarray(layer, dtype=np.float32)
    return pixels[..., :3], pixels[..., 3:] / 255


def _add_patch(
    scene: np.ndarray,
    alpha: np.ndarray,
    textures: TextureStore,
    names: list[str],
    rng: np.random.Generator,
    centre: tuple[float, float],
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Lay an irregular piece of a texture on the scene.

    Returns:
        The scene with the patch, and what is left of the object's alpha.
    """
    window, blob = _blob(scene.shape[:2], centre, radius, rng)
    name = names[int(rng.integers(len(names)))]
    patch = textures.crop(name, (blob.shape[1], blob.shape[0]), rng, scales=(0.4, 0.9))
    patch = scale_light(patch, rng, brightness=(0.7, 1.15))
    scene, alpha = scene.copy(), alpha.copy()
    scene[window] = patch * blob + scene[window] * (1 - blob)
    alpha[window] *= 1 - blob
    return scene, alpha


def cover(
    scene: np.ndarray,
    alpha: np.ndarray,
    textures: TextureStore,
    names: list[str],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Lay a patch over the object, smaller and smaller until enough of the object shows."""
    rows, columns = np.nonzero(alpha[..., 0] >= 0.5)
    chosen = int(rng.integers(len(rows)))
    centre = (float(columns[chosen]), float(rows[chosen]))
    radius = rng.uniform(0.25, 0.5) * len(rows) ** 0.5
    for _ in range(8):
        covered, visible = _add_patch(scene, alpha, textures, names, rng, centre, radius)
        if (visible >= 0.5).sum() >= _SMALLEST_VISIBLE_SHARE * len(rows):
            return covered, visible
        radius *= 0.75
    return scene, alpha


def _blob(
    shape: tuple[int, ...],
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A rounded irregular shape around a point inside an image.

    Returns:
        The rows and columns of the image that it lies in, and its alpha there (rows, columns, 1).
    """
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radii = np.full_like(angles, radius)
    for waves in (2, 3, 5):
        swing = radius * rng.uniform(0, 0.3) / waves**0.5
        radii += swing * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    x, y = centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)
    left, top = max(0, int(np.min(x))), max(0, int(np.min(y)))
    right, bottom = min(shape[1], int(np.max(x)) + 2), min(shape[0], int(np.max(y)) + 2)
    size = (right - left, bottom - top)
    big = Image.new("L", (2 * size[0], 2 * size[1]))
    corners = np.stack([2 * (x - left), 2 * (y - top)], axis=1)
    ImageDraw.Draw(big).polygon([(float(a), float(b)) for a, b in corners], fill=255)
    small = big.resize(size, Image.Resampling.BOX)
    alpha = np.asarray(small, dtype=np.float32)[..., None] / 255
    return (slice(top, bottom), slice(left, right)), alpha


def _shadow(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Alpha (height, width, 1) of a soft shadow, a little beside the object."""
    image = Image.fromarray((alpha[..., 0] * 255).round().astype(np.uint8))
    shift = (int(rng.integers(-8, 9)), int(rng.integers(2, 10)))
    moved = Image.new("L", image.size)
    moved.paste(image, shift)
    blurred = moved.filter(ImageFilter.BoxBlur(4)).filter(ImageFilter.BoxBlur(4))
    return np.asarray(blurred, dtype=np.float32)[..., None] / 255


def scale_light(
    pixels: np.ndarray, rng: np.random.Generator, brightness: tuple[float, float]
) -> np.ndarray:
    """Change brightness, contrast and colour."""
    contrast = rng.uniform(0.8, 1.15)
    gains = rng.uniform(*brightness) * rng.uniform(0.93, 1.07, 3)
    offset = 128 * (1 - contrast) * gains
    lit = pixels * (contrast * gains).astype(np.float32) + offset.astype(np.float32)
    return np.clip(lit, 0, 255)


def light_gradient(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Gain (height, width, 1) of light that comes from one side."""
    angle = rng.uniform(0, 2 * np.pi)
    strength = rng.uniform(0, 0.25)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gain = 1 + strength * (x * np.cos(angle) + y * np.sin(angle))
    return gain[..., None].astype(np.float32)
