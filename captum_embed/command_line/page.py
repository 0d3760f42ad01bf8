"""One self-contained page: pictures are in it, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from captum_embed.command_line.images import printable, read_image
from captum_embed.command_line.preparation import Prepared
from captum_embed.errors import InputError

_THUMBNAIL = 112
_NEIGHBORS_SHOWN = 8
_REFERENCES_SHOWN = 12
# Titles of the maps, by how they were made.
_TITLES = {"reference": "the match with the references", "bank": "the match, by the bank"}


class Page:
    """Collects what is shown and makes the page.

    Args:
        prepared: Network, layer and recipe.
        facts: Of the run.
        references: Image files that the maps compare with.
        foils: Image files that they are weighed against.
        bank_images: The folder that a bank was built from, to show neighbours; or None.
    """

    def __init__(
        self,
        prepared: Prepared,
        facts: dict[str, Any],
        references: Sequence[Path],
        foils: Sequence[Path],
        bank_images: str | None,
    ) -> None:
        self._prepared, self._facts = prepared, facts
        self._bank_images = None if bank_images is None else Path(bank_images)
        if self._bank_images is not None and not self._bank_images.is_dir():
            raise InputError(f"--bank-images: there is no folder {printable(bank_images)}")
        self._references = self._strip(references)
        self._foils = self._strip(foils)
        self._images: list[dict[str, Any]] = []

    def add(
        self,
        path: Path,
        role: str,
        picture: Image.Image,
        maps: Sequence[tuple[str, Image.Image, dict[str, Any]]],
    ) -> None:
        """An image, or a reference, with its overlays and what is known of each."""
        self._images.append(
            {
                "name": printable(path) + (", a reference" if role == "reference" else ""),
                "picture": _data_uri(picture),
                "maps": [
                    {
                        "title": "the match with the image" if role != "image" else _TITLES[way],
                        "overlay": _data_uri(overlay),
                        "similarity": record.get("similarity"),
                        "same": record.get("same", False),
                        "full_colour": record["full_colour"],
                        "more": max(0, len(record.get("neighbors", [])) - _NEIGHBORS_SHOWN),
                        "neighbors": [
                            {**one, "name": _name(one), "picture": self._neighbor(one["key"])}
                            for one in record.get("neighbors", [])[:_NEIGHBORS_SHOWN]
                        ],
                    }
                    for way, overlay, record in maps
                ],
            }
        )

    def html(self) -> str:
        """The page."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        template = files("captum_embed.command_line").joinpath("page.html.jinja")
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            question=self._prepared.recipe.question,
            facts=self._facts,
            references=self._references,
            foils=self._foils,
            images=self._images,
            signed=self._prepared.recipe.name != "localize",
        )

    def _strip(self, paths: Sequence[Path]) -> dict[str, Any]:
        shown = [
            {
                "name": printable(path),
                "picture": _data_uri(self._prepared.picture(path), small=True),
            }
            for path in paths[:_REFERENCES_SHOWN]
        ]
        return {"shown": shown, "more": len(paths) - len(shown)}

    def _neighbor(self, key: str | None) -> str | None:
        """The picture of a bank's entry; a key that leads out of the folder has none."""
        if key is None or self._bank_images is None:
            return None
        root = self._bank_images.resolve()
        path = (root / key).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return None
        try:
            return _data_uri(self._prepared.preprocessing.picture(read_image(path)), small=True)
        except InputError:
            return None


def _name(neighbor: dict[str, Any]) -> str:
    key = neighbor["key"]
    return printable(f"entry {neighbor['index']}" if key is None else key)


def _data_uri(picture: Image.Image, *, small: bool = False) -> str:
    shown = picture
    if small:
        shown = picture.copy()
        shown.thumbnail((_THUMBNAIL * 2, _THUMBNAIL * 2))
    buffer = io.BytesIO()
    shown.save(buffer, "jpeg", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
