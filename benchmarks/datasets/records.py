"""Image records with boxes and masks; a data set is a tuple of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from benchmarks.core.settings import Classes, ClassNumbers
from captum_embed.command_line.images import FORMATS, printable, unfit
from captum_embed.errors import InputError

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, x1 and y1 exclusive: x1 = x0 + width."""

ROTATED = range(2, 9)
"""EXIF orientations other than upright; files hold values without a meaning, too."""


class DatasetError(InputError):
    """A data set, or a selection from it, can't be used; the message names the file."""


class UnreadableImageError(DatasetError):
    """One image or mask can't be decoded. A run may count it and go on."""


class BoxError(DatasetError):
    """A bounding box is not finite, has no area, or lies wholly outside its image."""


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it, without its pixels.

    Args:
        key (str): unique name in its data set; a relative path with ``/`` between the parts.
        path (Path): where the image file is.
        label (int): the class number of the data set's own files (CUB: from 1).
        class_name (str): the class name of the data set's own files.
        box (Box): as annotated, not clipped (the image's size is unknown until it is opened).
        mask_path (Path, optional): segmentation mask of the object, if there is one.
        mask_foreground (tuple of int, optional): pixel values of the mask that are the object;
            default: all from 128.
        is_training (bool, optional): the official split, if the data set has one.
        extra_boxes (Mapping[str, Box]): further named boxes, for example the head of a pet.
    """

    key: str
    path: Path
    label: int
    class_name: str
    box: Box
    mask_path: Path | None = None
    mask_foreground: tuple[int, ...] | None = None
    is_training: bool | None = None
    extra_boxes: Mapping[str, Box] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set that are present on disk.

    Args:
        name (str): of the data set.
        root (Path): the folder it was read from.
        records (tuple of ImageRecord): in the order of the data set's own files.
        num_absent (int): images that the data set lists and that are not there.
        listed_counts (Mapping[int, int]): images listed for each class, present or not; empty
            if not known.
    """

    name: str
    root: Path
    records: tuple[ImageRecord, ...]
    num_absent: int = 0
    listed_counts: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> tuple[int, ...]:
        """The class number of each record."""
        return tuple(record.label for record in self.records)

    @property
    def class_sizes(self) -> dict[int, int]:
        """Present images of each class that has any, by ascending class number."""
        return dict(sorted(Counter(self.labels).items()))

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each class that has images, by ascending class number."""
        return dict(sorted({record.label: record.class_name for record in self.records}.items()))

    def listing(self, most: int = 20) -> str:
        """The classes that have images, for a message."""
        every = [
            str(number) if name == str(number) else f"{number} {printable(name)}"
            for number, name in self.class_names.items()
        ]
        return ", ".join(every[:most]) + (", ..." if len(every) > most else "") or "none"

    def numbers_of(self, classes: Classes) -> ClassNumbers:
        """The numbers of classes that are given by number or by name.

        Args:
            classes (Classes): a name is the data set's own, such as ``"002.Cat"``, or what stands
                behind the number in it, ``"Cat"``.

        Raises:
            DatasetError: a class of this name has no image here, or several have.
        """
        if isinstance(classes, ClassNumbers):
            return classes
        named: dict[str, set[int]] = {}
        for number, name in self.class_names.items():
            for alias in (name, re.sub(r"^[0-9]+\.", "", name)):
                named.setdefault(alias, set()).add(number)
        for name in classes:
            if len(named.get(name, ())) != 1:
                known = "several classes have" if name in named else "no class with images has"
                raise DatasetError(
                    f"{self.name} at {self.root}: {known} the name '{printable(name)}'. Classes "
                    f"with images: {self.listing()}"
                )
        return ClassNumbers(sorted({number for name in classes for number in named[name]}))

    def select(self, class_numbers: Collection[int]) -> ImageSet:
        """Keep the images of some classes.

        Args:
            class_numbers (Collection[int]): as in the data set's own files, like `ClassNumbers`.

        Returns:
            The chosen classes' images in the same order; absent images are those of the
            chosen classes.

        Raises:
            DatasetError: nothing is selected, or a class has no image here.
        """
        chosen = set(class_numbers)
        if not chosen:
            raise DatasetError(f"no class of {self.name} is selected")
        counts = self.class_sizes
        if missing := sorted(chosen - counts.keys()):
            raise DatasetError(self._explain_missing(missing))
        records = tuple(record for record in self.records if record.label in chosen)
        listed = {label: n for label, n in self.listed_counts.items() if label in chosen}
        num_absent = sum(listed.values()) - len(records) if listed else self.num_absent
        return replace(self, records=records, num_absent=num_absent, listed_counts=listed)

    def _explain_missing(self, missing: list[int]) -> str:
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        present = ", ".join(map(str, self.class_sizes)) or "none"
        why = "are listed, but none of their images is there"
        if any(label not in self.listed_counts for label in missing):
            why = "are not all in this data set"
        return (
            f"{self.name} at {self.root}: no images of class {shown}: these classes {why}. "
            f"Classes with images: {present}"
        )


def load_rgb(record: ImageRecord) -> Image.Image:
    """Decode an image of 8 bits a channel, at most `MAX_PIXELS` large, in one of `FORMATS`.

    EXIF orientation is ignored: boxes are in the pixels as stored. Pillow turns the pixels of a
    TIFF, so one that is stored turned is refused.

    Raises:
        UnreadableImageError: the file is missing, truncated, not such an image, or too large.
    """
    return _decode(record.path, "RGB")


def load_mask(record: ImageRecord, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the object mask of an image.

    Args:
        record (ImageRecord): one with a ``mask_path``.
        size (tuple of int, optional): (width, height) that the mask must have, that of the image.

    Returns:
        Boolean array (H, W), True on the object.

    Raises:
        DatasetError: there is no mask.
        UnreadableImageError: the mask can't be decoded, has another size, or no pixel of it is
            the object; or the image is to be shown turned (EXIF), and whether its mask is stored
            turned cannot be told.
    """
    if record.mask_path is None:
        raise DatasetError(f"image {record.key} has no mask")
    if size is not None and (orientation := _orientation(record.path)) in ROTATED:
        raise UnreadableImageError(
            f"{record.path}: stored turned (EXIF orientation {orientation}), and its mask "
            f"{record.mask_path} may be upright; turn the image's pixels, and drop the tag"
        )
    if record.mask_foreground is None:
        mask = np.asarray(_decode(record.mask_path, "L")) >= 128
        wanted = ">= 128"
    else:
        mask = np.isin(np.asarray(_decode(record.mask_path, None)), record.mask_foreground)
        wanted = f"in {record.mask_foreground}"
    if mask.ndim != 2:
        raise UnreadableImageError(
            f"{record.mask_path}: a mask has one channel, this has {mask.shape}"
        )
    if size is not None and mask.shape != (size[1], size[0]):
        raise UnreadableImageError(
            f"{record.mask_path}: the mask is {mask.shape[1]}x{mask.shape[0]}, "
            f"its image {record.path} is {size[0]}x{size[1]}"
        )
    if not mask.any():
        raise UnreadableImageError(
            f"{record.mask_path}: no object in this mask (no pixel is {wanted})"
        )
    return mask


def clip_box(box: Box, width: int, height: int, name: str = "an image") -> Box:
    """Clip a box to its image.

    Args:
        box (Box): (x0, y0, x1, y1).
        width (int): of the image, in pixels.
        height (int): of the image, in pixels.
        name (str): of the image, for the error.

    Raises:
        BoxError: no part of the box lies in the image.

    Example:
        >>> clip_box((-3.0, 10.0, 50.0, 120.0), 200, 100)
        (0.0, 10.0, 50.0, 100.0)
    """
    x0, y0, x1, y1 = box
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    # "not <" rather than ">=", so that NaN is refused as well.
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise BoxError(f"box {box} of {name} lies wholly outside the image ({width}x{height})")
    return clipped


def _decode(path: Path, mode: str | None) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as image:
            _require_faithful(path, image)
            image.load()
            return image.copy() if mode is None or image.mode == mode else image.convert(mode)
    # Pillow raises SyntaxError, ValueError and others on broken files, besides OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UnreadableImageError):
            raise
        raise UnreadableImageError(
            f"{path}: can't be read as an image of a known format, {', '.join(FORMATS)} ({error})"
        ) from error


def _require_faithful(path: Path, image: Image.Image) -> None:
    """Refuse, before it is decoded, what would become wrong or too large."""
    if reason := unfit(image):
        raise UnreadableImageError(f"{path} {reason}")
    # Only of a TIFF: of a PNG, looking for EXIF data decodes the pixels.
    if image.format == "TIFF":
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in ROTATED:
            raise UnreadableImageError(
                f"{path}: stored turned (orientation {orientation}), and boxes are in the pixels "
                "as stored, which Pillow would turn; turn the image's pixels, and drop the tag"
            )


def _orientation(path: Path) -> int:
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise UnreadableImageError(f"{path}: its EXIF data can't be read ({error})") from error
