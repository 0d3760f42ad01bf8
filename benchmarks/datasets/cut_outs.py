"""Objects cut out of the photographs that ship inside scikit-image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.datasets import outlines

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class ObjectClass:
    """What one class of the embedded data set shows.

    Attributes:
        name: of the class.
        source: the photographs, for the README of the data set.
        cut: makes the cut-outs; an image of the class shows one of them.
        turn: largest rotation in degrees, to either side.
        mirrored: whether an image may show the object mirrored.
        shares: smallest and largest share of the image's width or height that its box takes.
    """

    name: str
    source: str
    cut: Callable[[], list[Image.Image]]
    turn: float = 25.0
    mirrored: bool = True
    shares: tuple[float, float] = (0.35, 0.7)


def _rgb(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")


def _outline_alpha(size: tuple[int, int], points: str) -> Image.Image:
    big = Image.new("L", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    corners = [
        tuple(_SUPERSAMPLING * float(number) for number in point.split(","))
        for point in points.split()
    ]
    ImageDraw.Draw(big).polygon(corners, fill=255)
    return big.resize(size, Image.Resampling.BOX)


def _cut(photograph: Image.Image, alpha: Image.Image) -> Image.Image:
    """The object alone, in mode RGBA, cropped to it."""
    cut_out = photograph.copy()
    cut_out.putalpha(alpha)
    return cut_out.crop(alpha.getbbox())


def _cut_outlines(pixels: np.ndarray, *outlines_of_objects: str) -> list[Image.Image]:
    photograph = _rgb(pixels)
    return [
        _cut(photograph, _outline_alpha(photograph.size, points)) for points in outlines_of_objects
    ]


def _cut_horse() -> list[Image.Image]:
    """A silhouette has no pixels of its own: a dark coat, lighter above."""
    silhouette = ~skimage.data.horse()
    height, width = silhouette.shape
    shade = np.linspace(1.5, 0.6, height)[:, None, None]
    coat = (shade * np.array([58.0, 42.0, 34.0])).round().astype(np.uint8)
    photograph = Image.fromarray(np.broadcast_to(coat, (height, width, 3)).copy())
    return [_cut(photograph, _soften(silhouette))]


def _cut_motorcycle() -> list[Image.Image]:
    """What stands out from the floor and the wall in the measured depth."""
    left, _, disparity = skimage.data.stereo_motorcycle()
    disparity = np.where(np.isfinite(disparity), disparity, 0)
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]]
    floor = 33.6 + 0.179 * (y - 360) - 0.0012 * x
    mask = disparity > np.maximum(31, floor + 1.8)
    mask &= (x > 85) & (x < 690) & (y < 455)
    # Where the tyre meets the floor both are at the same depth.
    mask |= np.asarray(_outline_alpha(mask.shape[::-1], outlines.FRONT_TYRE)) > 127
    mask = ndimage.binary_closing(mask, iterations=2)
    mask = _largest_component(mask)
    mask = ~_without_specks(~mask, 60)
    mask = ndimage.binary_opening(mask, structure=np.ones((2, 2)))
    return [_cut(_rgb(left), _soften(_largest_component(mask)))]


def _cut_retina() -> list[Image.Image]:
    photograph = _rgb(skimage.data.retina())
    alpha = Image.new("L", photograph.size)
    ImageDraw.Draw(alpha).ellipse((18, 18, 1390, 1390), fill=255)
    small = (photograph.width // 2, photograph.height // 2)
    return [_cut(photograph.resize(small), alpha.resize(small))]


def _cut_sheet(pixels: np.ndarray) -> list[Image.Image]:
    return [_rgb(pixels).convert("RGBA")]


def _soften(mask: np.ndarray) -> Image.Image:
    """Anti-alias the edge of a mask of whole pixels."""
    smooth = ndimage.gaussian_filter(mask.astype(np.float64), 0.7)
    return Image.fromarray((np.clip(2 * smooth - 0.6, 0, 1) * 255).round().astype(np.uint8))


def _largest_component(mask: np.ndarray) -> np.ndarray:
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components == np.argmax(sizes)


def _without_specks(mask: np.ndarray, smallest: int) -> np.ndarray:
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return sizes[components] >= smallest


CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass(
        "Astronaut",
        "astronaut: Eileen Collins, NASA, public domain",
        lambda: _cut_outlines(skimage.data.astronaut(), outlines.ASTRONAUT),
    ),
    ObjectClass(
        "Cat",
        "cat (chelsea): Stefan van der Walt, CC0",
        lambda: _cut_outlines(skimage.data.cat(), outlines.CAT),
    ),
    ObjectClass(
        "Coin",
        "coins: Greek coins from Pompeii, Brooklyn Museum, no known copyright restrictions",
        lambda: _cut_outlines(skimage.data.coins(), *outlines.COINS),
        turn=60.0,
        mirrored=False,
    ),
    ObjectClass(
        "Cup",
        "coffee: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
        lambda: _cut_outlines(skimage.data.coffee(), outlines.CUP),
    ),
    ObjectClass(
        "Handwriting",
        "text: from Wikipedia's Corner.png, public domain",
        lambda: _cut_sheet(skimage.data.text()),
        mirrored=False,
    ),
    ObjectClass(
        "Horse",
        "horse: silhouette by Andreas Preuss (marauder), openclipart, CC0",
        _cut_horse,
    ),
    ObjectClass(
        "Motorcycle",
        "stereo_motorcycle: Middlebury 2014 stereo benchmark (Scharstein et al., GCPR 2014)",
        _cut_motorcycle,
    ),
    ObjectClass(
        "Page",
        "page: printed text, scikit-image",
        lambda: _cut_sheet(skimage.data.page()),
        mirrored=False,
    ),
    ObjectClass(
        "Photographer",
        "camera: Lav Varshney, CC0",
        lambda: _cut_outlines(skimage.data.camera(), outlines.PHOTOGRAPHER),
    ),
    ObjectClass(
        "Retina",
        "retina: Haggstrom, Wikimedia Commons, CC0",
        _cut_retina,
        turn=60.0,
    ),
    ObjectClass(
        "Rocket",
        "rocket: DSCOVR on Falcon 9, SpaceX, public domain",
        lambda: _cut_outlines(skimage.data.rocket(), outlines.ROCKET),
        turn=50.0,
        # Thin and long: any smaller it would be a few pixels wide.
        shares=(0.5, 0.75),
    ),
    ObjectClass(
        "Shuttle",
        "astronaut (its background): NASA, public domain",
        lambda: _cut_outlines(skimage.data.astronaut(), outlines.SHUTTLE),
        turn=50.0,
    ),
)
