"""The embedded data set: real photographs in the CUB layout, generated locally."""

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.datasets.composition import Composite, compose
from benchmarks.datasets.cut_outs import CLASSES
from benchmarks.datasets.records import DatasetError
from benchmarks.datasets.textures import TEXTURE_SOURCES, TEXTURES, TextureStore
from captum_embed.errors import InputError

MARKER = "embedded.json"
"""The file that says with which settings a data set was written."""

FORMAT_VERSION = 1
_JPEG_QUALITY = 92


def write_embedded(
    root: Path | str,
    *,
    images_per_class: int = 20,
    seed: int = 0,
    background_of_class: Mapping[int, str] | None = None,
    progress: bool = True,
) -> Path:
    """Write the embedded data set, unless it is there already.

    Objects cut out of the sample photographs that ship inside scikit-image (nothing is
    downloaded) are scaled, turned, lit and partly covered at random, and laid on its photographs
    of textures. Masks and boxes are those of the pixels of the object that are visible in the
    end. Load it with ``load_cub``.

    Args:
        root: folder to write to; it must not exist, be empty, or hold this very data set.
        images_per_class: at least 2.
        seed: the same seed and library versions give the same files, byte for byte.
        background_of_class: plants a shortcut: from the number of a class (from 1) to the name
            of the texture that is behind each of its objects; other classes get any texture.
        progress: whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        InputError: a setting is out of range or names an unknown class or texture.
        DatasetError: the folder holds something else, or this data set with other settings.
    """
    root = Path(root)
    settings = _check_settings(images_per_class, seed, background_of_class or {})
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        _require_same(root, settings)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".part-{os.getpid()}-{root.name}")
    try:
        temporary.mkdir()
        _write_all(temporary, settings, progress)
        os.replace(temporary, root)
    except OSError:
        # Another process that writes here was faster, and may have tidied up what is unfinished.
        if not root.is_dir() or not any(root.iterdir()):
            raise
        _require_same(root, settings)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _check_settings(
    images_per_class: int, seed: int, background_of_class: Mapping[int, str]
) -> dict[str, Any]:
    if images_per_class < 2:
        raise InputError(f"images_per_class must be at least 2, got {images_per_class}")
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    for label, texture in background_of_class.items():
        if not 1 <= label <= len(CLASSES):
            raise InputError(
                f"background_of_class: classes are 1 to {len(CLASSES)}, got class {label}"
            )
        if texture not in TEXTURES:
            raise InputError(
                f"background_of_class: no texture {texture!r} (class {label}); choose from "
                f"{', '.join(TEXTURES)}"
            )
    return {
        "format": FORMAT_VERSION,
        "images_per_class": images_per_class,
        "seed": seed,
        "background_of_class": {str(k): v for k, v in sorted(background_of_class.items())},
    }


def _require_same(root: Path, settings: dict[str, Any]) -> None:
    try:
        written = json.loads((root / MARKER).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{root}: there is something else than the embedded data set (no valid {MARKER}); "
            "give another folder or remove it"
        ) from error
    if written != settings:
        raise DatasetError(
            f"{root}: holds the embedded data set with other settings ({written}, not {settings}); "
            "give another folder or remove it"
        )
    wanted = len(CLASSES) * settings["images_per_class"]
    for folder, suffix in (("images", "jpg"), ("segmentations", "png")):
        present = sum(1 for _ in (root / folder).glob(f"*/*.{suffix}"))
        if present != wanted:
            raise DatasetError(
                f"{root / folder}: {present} of {wanted} files of the embedded data set are "
                "there; remove the folder to have it written again"
            )


def _write_all(root: Path, settings: dict[str, Any], progress: bool) -> None:
    textures = TextureStore()
    backgrounds = settings["background_of_class"]
    per_class = settings["images_per_class"]
    lists: dict[str, list[str]] = {
        "images": [],
        "image_class_labels": [],
        "bounding_boxes": [],
        "train_test_split": [],
        # Not CUB's: which texture is behind the object.
        "backgrounds": [],
    }
    with tqdm(
        total=len(CLASSES) * per_class, desc="embedded data set", disable=not progress
    ) as bar:
        for label, object_class in enumerate(CLASSES, start=1):
            cut_outs = object_class.cut()
            for index in range(per_class):
                # A stream of its own per image: an image doesn't depend on how many there are.
                rng = np.random.default_rng([settings["seed"], label, index])
                composite = compose(
                    object_class, cut_outs, textures, rng, backgrounds.get(str(label))
                )
                name = f"{class_folder(label)}/{object_class.name}_{index + 1:04d}"
                write_image(root, name, composite)
                image_id = len(lists["images"]) + 1
                x, y, width, height = composite.box
                lists["images"].append(f"{image_id} {name}.jpg")
                lists["image_class_labels"].append(f"{image_id} {label}")
                lists["bounding_boxes"].append(f"{image_id} {x}.0 {y}.0 {width}.0 {height}.0")
                lists["train_test_split"].append(f"{image_id} {(index + 1) % 2}")
                lists["backgrounds"].append(f"{image_id} {composite.background}")
                bar.update()
    lists["classes"] = [f"{label} {class_folder(label)}" for label in range(1, len(CLASSES) + 1)]
    for name, lines in lists.items():
        _write_lines(root / f"{name}.txt", lines)
    _write_lines(root / "README", _readme(settings))
    marker = {"settings": settings, "versions": _versions()}
    _write_lines(root / MARKER, [json.dumps(marker, indent=1)])


def distractors_of(root: Path) -> str:
    """What else an image of this folder shows, in a sentence; nothing for other data sets."""
    if not (root / MARKER).is_file():
        return ""
    return (
        f"Distractors: patches of {', '.join(TEXTURES[:-1])} and {TEXTURES[-1]}, beside the object "
        "and on it"
    )


def class_folder(label: int) -> str:
    """The name of a class (from 1) as in CUB: with its number in front.

    Example:
        >>> class_folder(2)
        '002.Cat'
    """
    return f"{label:03d}.{CLASSES[label - 1].name}"


def write_image(root: Path, name: str, composite: Composite) -> None:
    image_path = root / "images" / f"{name}.jpg"
    mask_path = root / "segmentations" / f"{name}.png"
    for path in (image_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    composite.image.save(image_path, quality=_JPEG_QUALITY)
    Image.fromarray(composite.mask.astype(np.uint8) * 255).save(mask_path)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("scikit-image", "numpy", "pillow", "scipy")}


def _readme(settings: dict[str, Any]) -> list[str]:
    return [
        "The embedded data set of captum_embed's benchmarks, in the layout of CUB-200-2011.",
        "",
        "Composites: objects cut out of the sample photographs of scikit-image, laid on its",
        "photographs of textures. Boxes and masks are exact: those of the visible pixels of the",
        "object. Texture patches lie beside and on the objects. backgrounds.txt names the texture",
        "behind each object.",
        f"Settings: {json.dumps(settings)}",
        "",
        "Sources of the classes (functions of skimage.data), as scikit-image documents them:",
        *(f"- {object_class.name}: {object_class.source}" for object_class in CLASSES),
        "",
        "Sources of the textures:",
        *(f"- {source}" for source in TEXTURE_SOURCES),
    ]
