"""Image files: which ones a path names, how they are read, and what the network is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from captum_embed.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What is decoded, whatever a file's name says. For others Pillow may start another program, or
# show a damaged file as if it were whole.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Pillow's own bound for what may be a decompression bomb.
MAX_PIXELS = 89_478_485
MAX_RATIO = 100

Framing = Literal["crop", "whole", "squash"]


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image file before the network sees it.

    Args:
        image_size: Side of the square that the network is shown, in pixels.
        shorter_side: Of the image, after resizing, in pixels; not used with ``"squash"``.
        framing: ``"crop"``: the central square; ``"whole"``: all of the image, in its
            proportions; ``"squash"``: all of it, stretched to the square.
        mean: Of each colour, which is subtracted (colours are in [0, 1]).
        std: Of each colour, by which the rest is divided.
        interpolation: Pillow's name of a filter, such as ``"bilinear"``.

    Example::

        >>> from PIL import Image
        >>> preprocessing = Preprocessing(image_size=32, shorter_side=40)
        >>> preprocessing.picture(Image.new("RGB", (80, 60))).size
        (32, 32)
        >>> preprocessing.replaced(framing="whole").picture(Image.new("RGB", (80, 60))).size
        (53, 40)
    """

    image_size: int = 224
    shorter_side: int = 256
    framing: Framing = "crop"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.shorter_side:
            raise InputError(
                f"the image's shorter side is {self.shorter_side} pixels and the square cut from "
                f"it {self.image_size}; expected numbers above 0, the second no larger"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(one > 0 for one in self.std):
            raise InputError(
                f"mean is {self.mean} and std {self.std}; expected three numbers each, those of "
                "std above 0"
            )
        if not hasattr(Image.Resampling, self.interpolation.upper()):
            known = ", ".join(each.name.lower() for each in Image.Resampling)
            raise InputError(f"interpolation is {self.interpolation!r}; expected one of {known}")

    def replaced(
        self,
        image_size: int | None = None,
        framing: Framing | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocessing:
        """With some settings changed; the share of the image that a crop leaves is kept."""
        size = self.image_size if image_size is None else image_size
        return replace(
            self,
            image_size=size,
            shorter_side=round(size * self.shorter_side / self.image_size),
            framing=framing or self.framing,
            mean=self.mean if mean is None else tuple(mean),
            std=self.std if std is None else tuple(std),
        )

    def picture(self, image: Image.Image) -> Image.Image:
        """The part of an RGB image that the network sees, at its size."""
        filter_ = Image.Resampling[self.interpolation.upper()]
        if self.framing == "squash":
            return image.resize((self.image_size, self.image_size), filter_)
        width, height = image.size
        # Rounded down, as torchvision does.
        resized = image.resize(
            (self.shorter_side, int(self.shorter_side * height / width))
            if width <= height
            else (int(self.shorter_side * width / height), self.shorter_side),
            filter_,
        )
        if self.framing == "whole":
            return resized
        left, top = (round((side - self.image_size) / 2.0) for side in resized.size)
        return resized.crop((left, top, left + self.image_size, top + self.image_size))

    def tensor(self, picture: Image.Image) -> Tensor:
        """The network's input of one picture, (3, H, W)."""
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()

    def to_text(self) -> str:
        """As JSON, for a bank's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Preprocessing:
        """What :meth:`to_text` wrote.

        Raises:
            InputError: It is something else.
        """
        try:
            values: Any = json.loads(text)
            if set(values) != {field.name for field in fields(cls)}:
                raise ValueError(f"the settings are {sorted(values)}")
            return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"the weight bank's note on how its images were prepared cannot be read ({error}); "
                "build the bank again"
            ) from error


def unfit(image: Image.Image) -> str | None:
    """Why an image that was opened, and not decoded, is not read; None if nothing is against it.

    More than 8 bits a colour are cut off by Pillow. Of a strip, the network would be shown a
    picture of any length, because the shorter side is brought to a size.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"has {width} x {height} pixels; at most {MAX_PIXELS:,} are read: scale it down"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"is {width} x {height} pixels, more than {MAX_RATIO} times as long as wide: crop it"
    deep = any(
        re.search(";16[BLN]", str(args)) or (codec.startswith("ppm") and args[-1] > 255)
        for codec, _, _, args in getattr(image, "tile", ())
    )
    if deep or image.mode[:1] in ("I", "F"):
        return (
            f"has {image.mode} pixels, of more than 8 bits a colour; save it as an 8-bit PNG or "
            "JPEG"
        )
    return None


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, upright.

    Args:
        path: Of a file in one of ``FORMATS``, with 8 bits a colour and at most ``MAX_PIXELS``;
            of several frames, the first counts.

    Returns:
        The image, in mode RGB.

    Raises:
        InputError: There is no such file, it is no such image, or is damaged or too large.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if reason := unfit(image):
                raise InputError(f"{printable(path)} {reason}")
            return ImageOps.exif_transpose(image).convert("RGB")
    except InputError:
        raise
    # Besides its own errors Pillow raises what its decoders do, on damaged files anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{printable(path)} cannot be read as an image ({reason}); expected a whole file in "
            f"one of the formats {', '.join(FORMATS)}"
        ) from error


def printable(path: object) -> str:
    """A path for a message: on one line, whatever characters it holds."""
    text = str(path).encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files that paths name.

    Args:
        paths: Files, taken whatever their suffix; and folders, from which all images are taken,
            at any depth, but nothing hidden.

    Returns:
        Their paths, in the order given; a folder's in the order of their names, 2 before 10.

    Raises:
        InputError: A path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = _images_in(path)
            if not inside:
                raise InputError(
                    f"the folder {printable(path)} holds no image; expected files that end in "
                    f"{', '.join(SUFFIXES)}"
                )
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise InputError(f"there is no file or folder {printable(path)}")
    return list(dict.fromkeys(images))


def _images_in(folder: Path) -> list[Path]:
    images = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    return sorted(images, key=lambda path: _natural(path.as_posix()))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name) if p]


def require_readable(paths: Sequence[str | Path], *, progress: bool = True) -> None:
    """Reads every image once, so that a damaged one shows before work starts.

    Raises:
        InputError: Some cannot be read; it names the first three.
    """
    shown = tqdm(paths, "check images", disable=not progress, leave=False, delay=1)
    wrong = [message for path in shown if (message := _fault_of(path)) is not None]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError("; ".join(wrong[:3]) + more)


def _fault_of(path: str | Path) -> str | None:
    try:
        read_image(path)
    except InputError as error:
        return str(error)
    return None


class ImageFolder(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A folder of photographs in one folder for each class, as a data set for a weight bank.

    Keys of a bank's entries are the paths below the root. Classes are numbered in the order of
    their names.

    Args:
        root: The folder; the folders in it are the classes, and hold images at any depth.
        preprocessing: What is done to an image.

    Raises:
        InputError: There is no such folder, it holds no image, or images that are in no class.
    """

    def __init__(self, root: str | Path, preprocessing: Preprocessing) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"there is no folder {printable(root)}")
        paths = find_images([self.root])
        loose = [path for path in paths if path.parent == self.root]
        if loose:
            raise InputError(
                f"the image {printable(loose[0].name)} lies in {printable(root)} itself; expected "
                "one folder for each class in there, such as "
                f"{printable(self.root / 'jay' / loose[0].name)}"
            )
        classes = [path.relative_to(self.root).parts[0] for path in paths]
        self.class_names = sorted(set(classes), key=_natural)
        numbers: Mapping[str, int] = {name: i for i, name in enumerate(self.class_names)}
        self.targets = [numbers[name] for name in classes]
        self.samples = [(str(p), label) for p, label in zip(paths, self.targets, strict=True)]
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.preprocessing.tensor(self.preprocessing.picture(read_image(path))), label
