"""Images with their class, box and mask, whatever data set they come from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

# x0, y0, x1, y1 in pixels; x1 and y1 are exclusive (x0 + width).
Box = tuple[float, float, float, float]


class DatasetError(ValueError):
    """A data set is not in the expected layout, or its annotations are malformed."""


class UnreadableImageError(DatasetError):
    """An image file cannot be decoded; it is named."""


@dataclass(frozen=True)
class ImageRecord:
    """One annotated image.

    Args:
        key (str): unique name, its path below the images folder, with forward slashes.
        path (Path): the file.
        label (int): the data set's own class number.
        class_name (str): its name.
        box (Box): as annotated; it may stick out of the image, see `clip_box`.
        mask_path (Path, optional): an image that is above zero on the object.
    """

    key: str
    path: Path
    label: int
    class_name: str
    box: Box
    mask_path: Path | None = None


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set that are there.

    Args:
        name (str): the data set's name.
        root (Path): its folder; all files lie below it.
        records (tuple of ImageRecord): in the data set's own order.
        num_absent (int): images that the annotations list and that have no file.
    """

    name: str
    root: Path
    records: tuple[ImageRecord, ...]
    num_absent: int = 0

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> list[int]:
        return [record.label for record in self.records]

    @property
    def class_sizes(self) -> dict[int, int]:
        """Number of images of each class, by class number."""
        return dict(sorted(Counter(self.labels).items()))

    def select(self, class_numbers: Iterable[int]) -> ImageSet:
        """The images of some classes.

        Raises:
            DatasetError: a class has no image here; all such classes are named.
        """
        wanted = set(class_numbers)
        without = sorted(wanted - set(self.labels))
        if without or not wanted:
            raise DatasetError(
                f"{self.root}: no images of class {_ranges(without) or '(none named)'}; "
                f"there are images of classes {_ranges(sorted(set(self.labels)))}"
            )
        return replace(self, records=tuple(r for r in self.records if r.label in wanted))


def require_pairs(images: ImageSet) -> None:
    """Refuses classes with a single image, which has no positive.

    Raises:
        DatasetError: names the first such class.
    """
    for number, size in images.class_sizes.items():
        if size < 2:
            name = next(r.class_name for r in images.records if r.label == number)
            raise DatasetError(
                f"{images.root}: class {number} ({name}) has a single image; a metric loss needs "
                "two of a class: leave the class out, or add images"
            )


def load_rgb(record: ImageRecord) -> Image.Image:
    """The image in RGB.

    Raises:
        UnreadableImageError: the file is absent, truncated or no image.
    """
    try:
        with Image.open(record.path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"{record.path}: cannot be read as an image ({error})"
        ) from error


def load_mask(record: ImageRecord) -> Image.Image:
    """The mask in 8-bit grey, as stored.

    Raises:
        UnreadableImageError: there is none, or it cannot be read.
    """
    if record.mask_path is None:
        raise UnreadableImageError(f"{record.path}: the image has no mask")
    try:
        with Image.open(record.mask_path) as image:
            return image.convert("L")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UnreadableImageError(
            f"{record.mask_path}: cannot be read as a mask ({error})"
        ) from error


def clip_box(box: Box, width: int, height: int, key: str = "the image") -> Box:
    """The part of a box that lies in the image.

    Raises:
        DatasetError: nothing of it does.

    Example:
        >>> clip_box((-3.0, 2.0, 50.0, 20.0), 40, 30)
        (0.0, 2.0, 40.0, 20.0)
    """
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[2], float(width)), min(box[3], float(height))
    if x0 >= x1 or y0 >= y1:
        raise DatasetError(
            f"{key}: the box {box} (x0, y0, x1, y1) lies outside the image of {width} x {height} "
            "pixels"
        )
    return x0, y0, x1, y1


def checked_box(x: float, y: float, width: float, height: float, where: str) -> Box:
    """A box from its corner and sides.

    Raises:
        DatasetError: not finite, or without area; ``where`` names the line.
    """
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise DatasetError(
            f"{where}: the box x={x} y={y} width={width} height={height} has no area"
        )
    return x, y, x + width, y + height


def path_below(folder: Path, name: str, where: str) -> Path:
    """A file that an annotation names, kept below its folder.

    Raises:
        DatasetError: the name is absolute or climbs out of the folder; ``where`` names the line.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not relative.parts:
        raise DatasetError(f"{where}: the file name {name!r} leads out of {folder}")
    path = folder / relative
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"{where}: the file name {name!r} leads out of {folder}, by a link")
    return path


def _ranges(numbers: list[int]) -> str:
    parts: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = i
    return ",".join(parts)
