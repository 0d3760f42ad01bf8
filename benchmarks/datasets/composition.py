"""One image of the embedded data set: an object on a background, among clutter, partly covered."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.datasets.cut_outs import ObjectClass
from benchmarks.datasets.textures import TEXTURES, TextureStore

_SIZES = ((500, 375), (500, 333), (480, 360), (500, 400), (375, 500), (333, 500), (400, 400))
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
    width, height = _SIZES[int(rng.integers(len(_SIZES)))]
    name = TEXTURES[int(rng.integers(len(TEXTURES)))]
    name = name if background is None else background
    others = [texture for texture in TEXTURES if texture != name]
    scene = textures.crop(name, (width, height), rng)
    scene = _scale_light(scene, rng, brightness=(0.6, 1.05))
    for _ in range(int(rng.integers(1, 5))):
        scene, _ = _add_patch(scene, textures, others, rng)

    cut_out = cut_outs[int(rng.integers(len(cut_outs)))]
    colours, alpha = _place(_pose(cut_out, object_class, (width, height), rng), scene.shape, rng)
    colours = _scale_light(colours, rng, brightness=(0.75, 1.2))
    scene = scene * (1 - 0.45 * _shadow(alpha, rng))
    scene = colours * alpha + scene * (1 - alpha)
    if rng.random() < 0.7:
        scene, alpha = _cover(scene, alpha, textures, others, rng)

    scene = scene * _light_gradient(width, height, rng)
    scene = scene + rng.normal(0, rng.uniform(0, 4), scene.shape)
    pixels = np.clip(scene, 0, 255).round().astype(np.uint8)
    return Composite(Image.fromarray(pixels), alpha[..., 0] >= 0.5, name)


def _pose(
    cut_out: Image.Image,
    object_class: ObjectClass,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Image.Image:
    """Mirror, stretch, turn and scale, so that one side is 30 to 70% of the image's."""
    if object_class.mirrored and rng.random() < 0.5:
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = np.deg2rad(rng.uniform(-object_class.turn, object_class.turn))
    stretch = rng.uniform(0.87, 1.15)
    share = rng.uniform(0.3, 0.7)
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
    textures: TextureStore,
    names: list[str],
    rng: np.random.Generator,
    centre: tuple[float, float] | None = None,
    sides: tuple[float, float] = (0.05, 0.13),
) -> tuple[np.ndarray, np.ndarray]:
    """Lay an irregular piece of a texture on the scene.

    Returns:
        The scene with the patch, and the alpha (height, width, 1) of the patch.
    """
    height, width = scene.shape[:2]
    if centre is None:
        centre = (rng.uniform(0, width), rng.uniform(0, height))
    radius = rng.uniform(*sides) * min(width, height)
    alpha = _blob((width, height), centre, radius, rng)
    name = names[int(rng.integers(len(names)))]
    patch = textures.crop(name, (width, height), rng, scales=(0.4, 0.9))
    patch = _scale_light(patch, rng, brightness=(0.6, 1.15))
    return patch * alpha + scene * (1 - alpha), alpha


def _cover(
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
    largest = 0.6 * np.sqrt(len(rows)) / min(scene.shape[:2])
    for _ in range(8):
        covered, patch = _add_patch(
            scene, textures, names, rng, centre, sides=(0.5 * largest, largest)
        )
        visible = alpha * (1 - patch)
        if (visible >= 0.5).sum() >= _SMALLEST_VISIBLE_SHARE * len(rows):
            return covered, visible
        largest *= 0.75
    return scene, alpha


def _blob(
    size: tuple[int, int], centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Alpha (height, width, 1) of a rounded irregular shape."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radii = np.ones_like(angles)
    for waves in (2, 3, 5):
        radii += rng.uniform(0, 0.3 / waves**0.5) * np.cos(
            waves * angles + rng.uniform(0, 2 * np.pi)
        )
    corners = [
        (2 * (centre[0] + radius * r * np.cos(a)), 2 * (centre[1] + radius * r * np.sin(a)))
        for a, r in zip(angles, radii, strict=True)
    ]
    big = Image.new("L", (2 * size[0], 2 * size[1]))
    ImageDraw.Draw(big).polygon(corners, fill=255)
    small = big.resize(size, Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)[..., None] / 255


def _shadow(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Alpha (height, width, 1) of a soft shadow, a little beside the object."""
    image = Image.fromarray((alpha[..., 0] * 255).round().astype(np.uint8))
    shift = (int(rng.integers(-8, 9)), int(rng.integers(2, 10)))
    moved = Image.new("L", image.size)
    moved.paste(image, shift)
    blurred = moved.filter(ImageFilter.BoxBlur(4)).filter(ImageFilter.BoxBlur(4))
    return np.asarray(blurred, dtype=np.float32)[..., None] / 255


def _scale_light(
    pixels: np.ndarray, rng: np.random.Generator, brightness: tuple[float, float]
) -> np.ndarray:
    """Change brightness, contrast and colour."""
    contrast = rng.uniform(0.8, 1.15)
    gains = rng.uniform(*brightness) * rng.uniform(0.93, 1.07, 3)
    return np.clip(((pixels - 128) * contrast + 128) * gains, 0, 255)


def _light_gradient(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Gain (height, width, 1) of light that comes from one side."""
    angle = rng.uniform(0, 2 * np.pi)
    strength = rng.uniform(0, 0.25)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (1 + strength * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
