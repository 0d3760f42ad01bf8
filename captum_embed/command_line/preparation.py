"""From options to a network, its layer and its images; what does not fit is refused here."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from captum_embed import recipes
from captum_embed.command_line.images import (
    Preprocessing,
    find_images,
    printable,
    read_image,
    require_readable,
)
from captum_embed.command_line.networks import LoadedNetwork, layer_named, load_network
from captum_embed.encoders import embedding_of, encoder_fingerprint
from captum_embed.errors import BankMismatchError, InputError
from captum_embed.recipes import Recipe
from captum_embed.weight_bank import WeightBank

RECIPES = {
    each.name: each for each in (recipes.EXPLAIN, recipes.LOCALIZE, recipes.TRANSFER, recipes.PAPER)
}
# What this command line writes into the metadata of a bank, beside what the library does.
CLASS_NAMES, PREPROCESSING, RECIPE = "class_names", "preprocessing", "recipe"


@dataclass(frozen=True)
class Prepared:
    """What every command with a network works with.

    Args:
        network: The network.
        recipe: How maps are made.
        layer: Keyword arguments ``layer``, ``layout`` and so on.
        layer_name: Dotted name of the layer.
        preprocessing: What is done to images.
    """

    network: LoadedNetwork
    recipe: Recipe
    layer: dict[str, Any]
    layer_name: str
    preprocessing: Preprocessing

    @property
    def encoder(self) -> nn.Module:
        """The network itself."""
        return self.network.encoder

    def picture(self, path: str | Path) -> Image.Image:
        """The part of an image that the network sees."""
        return self.preprocessing.picture(read_image(path))

    def tensor(self, picture: Image.Image) -> Tensor:
        """The network's input of a picture, (1, 3, H, W), on its device."""
        device = next(self.encoder.parameters(), torch.empty(0)).device
        return self.preprocessing.tensor(picture)[None].to(device)

    def embedding(self, picture: Image.Image) -> Tensor:
        """The embedding of a picture, (1, D).

        Raises:
            InputError: The network cannot take an image of this size, or gives something else.
        """
        image = self.tensor(picture)
        try:
            with torch.no_grad():
                embedding = embedding_of(self.encoder(image))
        # Networks state what they need by assertions, or fail in the middle.
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"the network {self.network.name} cannot take images of {image.shape[2]} x "
                f"{image.shape[3]} pixels ({error}); give --image-size, or --framing crop"
            ) from error
        if embedding.shape[:1] != (1,) or embedding.dim() != 2:
            raise InputError(
                f"the network {self.network.name} returned shape {tuple(embedding.shape)} for one "
                "image; expected an embedding, (1, D): pool and flatten in the network"
            )
        return embedding

    def facts(self) -> dict[str, Any]:
        """For the record of a run."""
        return {
            "network": self.network.name,
            "layer": self.layer_name,
            "layout": self.layer["layout"],
            "recipe": self.recipe.name,
            PREPROCESSING: json.loads(self.preprocessing.to_text()),
        }


def prepare(parsed: argparse.Namespace, bank: WeightBank | None = None) -> Prepared:
    """The network, layer and preprocessing that options ask for.

    Args:
        parsed: Options of ``add_network``.
        bank: What is not given as an option is taken from it.

    Raises:
        InputError: An option does not fit.
        LayerError: There is no such layer, or none is given and it cannot be told.
        BankMismatchError: The bank is of another network, or was built with other settings.
    """
    told = {} if bank is None else dict(bank.metadata)
    recipe = RECIPES.get(parsed.recipe or told.get(RECIPE, ""), recipes.EXPLAIN)
    if bank is not None:
        _require_same(
            bank, "layer", parsed.layer, told.get("layer"),
            "--layout", parsed.layout, told.get("layout") if "layer" in told else None,
        )  # fmt: skip
    network = load_network(
        parsed.network,
        weights=parsed.weights,
        checkpoint=parsed.checkpoint,
        device=parsed.device,
    )
    if told.get("encoder_fingerprint", "") not in ("", encoder_fingerprint(network.encoder)):
        raise BankMismatchError(
            f"the bank was built with other weights than those of {network.name} here, so its "
            "embeddings say nothing about this network's; give the bank's --network, --weights or "
            "--checkpoint"
            + (f" (its network was {printable(told['network'])})" if "network" in told else "")
        )
    layer, name = _layer(parsed, network.encoder, recipe, told)
    return Prepared(network, recipe, layer, name, _preprocessing(parsed, network, told))


def _require_same(bank: WeightBank, *triples: Any) -> None:
    for option, asked, built in zip(triples[::3], triples[1::3], triples[2::3], strict=True):
        if asked is not None and built is not None and asked != built:
            name = option.lstrip("-")
            raise BankMismatchError(
                f"the bank was built for the {name} {printable(built)!r}, and --{name} is "
                f"{asked!r}; leave the option out, or build a bank for this one"
            )


def _layer(
    parsed: argparse.Namespace, encoder: nn.Module, recipe: Recipe, told: dict[str, str]
) -> tuple[dict[str, Any], str]:
    """Settings of the layer: from the options, else the bank, else what is known of the network."""
    name = parsed.layer or told.get("layer")
    if name is None:
        settings = recipe.layer_settings(encoder)
    else:
        settings = {"layer": layer_named(encoder, name), "layout": "channels_first"}
        try:
            known = recipe.layer_settings(encoder)
        except ValueError:
            known = {}
        if known.get("layer") is settings["layer"]:
            settings = known
    layout = parsed.layout or (told.get("layout") if "layer" in told else None)
    if layout is not None and layout != settings["layout"]:
        settings = {"layer": settings["layer"], "layout": layout}
    if layout == "tokens" and told.get("prefix_tokens", "").isdecimal():
        settings["prefix_tokens"] = int(told["prefix_tokens"])
    given = {"prefix_tokens": parsed.prefix_tokens, "grid": parsed.grid and tuple(parsed.grid)}
    settings |= {key: value for key, value in given.items() if value is not None}
    names = (n for n, module in encoder.named_modules() if module is settings["layer"])
    return settings, next(names)


def _preprocessing(
    parsed: argparse.Namespace, network: LoadedNetwork, told: dict[str, str]
) -> Preprocessing:
    asked = {
        name: getattr(parsed, name)
        for name in ("image_size", "framing", "mean", "std")
        if getattr(parsed, name) is not None
    }
    if PREPROCESSING not in told:
        return network.preprocessing.replaced(**asked)
    built = Preprocessing.from_text(told[PREPROCESSING])
    if asked and network.preprocessing.replaced(**asked) != built:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise BankMismatchError(
            f"the bank's images were prepared with {told[PREPROCESSING]}, and {options} would "
            "prepare these otherwise; leave the options out, or build a bank with them"
        )
    return built


def chosen_images(parsed: argparse.Namespace, *paths: str) -> list[Path]:
    """The image files of a command, each readable.

    Raises:
        InputError: A path does not exist, or an image cannot be read.
    """
    images = find_images(paths)
    require_readable(images, progress=not parsed.quiet)
    return images


def class_names(bank: WeightBank) -> list[str] | None:
    """Names of the classes by number, as this command line notes them in a bank, or None.

    Raises:
        InputError: The note is no list of names.
    """
    text = bank.metadata.get(CLASS_NAMES)
    if text is None:
        return None
    try:
        names: Any = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("the weight bank's names of classes cannot be read; build the bank again")
    return names


def classes_with_entries(bank: WeightBank) -> dict[str, int]:
    """Numbers of the classes by name, but for those that have lost all of their entries."""
    present = set() if bank.labels is None else set(bank.labels.unique().tolist())
    names = enumerate(class_names(bank) or ())
    return {name: number for number, name in names if number in present}


def default_num_neighbors(
    recipe: Recipe, bank: WeightBank, exclude: Collection[str | int] | None
) -> int:
    """How many entries' weights are averaged, where no number is asked for.

    The recipe's, and no more than there are of one class: those of opposite classes cancel out.
    """
    left_out = set(exclude or ())
    labels = [None] * len(bank) if bank.labels is None else bank.labels.tolist()
    keys = bank.keys or [None] * len(bank)
    sizes = Counter(
        label
        for key, label in zip(keys, labels, strict=True)
        if key not in left_out and label not in left_out
    )
    return min(recipe.num_neighbors, max(sizes.values(), default=1))


def excluded(
    bank: WeightBank, names: Sequence[str] | None, option: str = "--exclude"
) -> list[str | int] | None:
    """What the library excludes, for names of keys or classes.

    Raises:
        InputError: A name is neither.
    """
    if names is None:
        return None
    keys, classes = set(bank.keys or ()), classes_with_entries(bank)
    unknown = [name for name in names if name not in keys and name not in classes]
    if unknown:
        raise InputError(
            f"{option} {printable(unknown[0])}: the bank has no key and no class of this name"
        )
    # The class, where a name is both: it holds the key.
    return [classes.get(name, name) for name in names]
