"""Networks by name, with their weights and with what they want done to an image."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from captum_embed.command_line.images import Preprocessing, printable
from captum_embed.errors import InputError, LayerError, MissingExtraError

NETWORK_HELP = "torchvision:NAME, timm:NAME, or PACKAGE.MODULE:FACTORY"
PRETRAINED, RANDOM = "DEFAULT", "random"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that maps images to embeddings.

    Args:
        name: As in :func:`load_network`.
        encoder: In evaluation mode, its parameters frozen.
        preprocessing: What it wants done to an image, as far as is known; otherwise ImageNet's.
    """

    name: str
    encoder: nn.Module
    preprocessing: Preprocessing


def load_network(
    name: str,
    *,
    weights: str | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    unit_length: bool = True,
) -> LoadedNetwork:
    """A network by name.

    Args:
        name: ``torchvision:NAME`` or ``timm:NAME``: a classifier without its last layer, its
            embeddings (the features that this layer reads) scaled to length one. Or
            ``PACKAGE.MODULE:FACTORY``: a callable, also from a file in the working directory,
            that takes nothing and returns a module from images (N, 3, H, W) to embeddings
            (N, D), which are left as they are.
        weights: ``"DEFAULT"``: the pretrained ones, which are downloaded once; for torchvision
            also another name, such as ``"IMAGENET1K_V1"``; ``"random"``: as initialised, the
            same each time. None: the pretrained ones, without a checkpoint. Not for factories.
        checkpoint: A safetensors file of the network's ``state_dict()``.
        device: ``"auto"``: the GPU where there is one.
        unit_length: Scale the embeddings of torchvision's and timm's networks to length one.

    Returns:
        The network.

    Raises:
        InputError: No such network, weights, device or checkpoint; or a download failed.
        MissingExtraError: torchvision or timm is not installed.

    Example::

        >>> network = load_network("torchvision:resnet18", weights="random", device="cpu")
        >>> network.encoder(torch.rand(2, 3, 64, 64)).norm(dim=1).round(decimals=3)
        tensor([1., 1.])
        >>> network.preprocessing.image_size
        224
    """
    where = chosen_device(device)
    if weights is not None and checkpoint is not None:
        raise InputError(
            f"weights {weights!r} and the checkpoint {checkpoint} are both given; give one of them"
        )
    library, colon, rest = name.partition(":")
    if not (library and colon and rest):
        raise InputError(f"the network is {name!r}; expected {NETWORK_HELP}")
    wanted = weights or (PRETRAINED if checkpoint is None else RANDOM)
    if library == "torchvision":
        network, preprocessing, unused = _from_torchvision(rest, wanted)
    elif library == "timm":
        network, preprocessing, unused = _from_timm(rest, wanted)
    else:
        if weights is not None:
            raise InputError(
                f"weights {weights!r} belong to torchvision and timm; the factory of {name} "
                "decides on its own, or a checkpoint is given"
            )
        network, preprocessing, unused = _from_factory(name), Preprocessing(), ()
    if checkpoint is not None:
        _fill(network, Path(checkpoint), name, unused)
    if unit_length and library in ("torchvision", "timm"):
        # A hook and not a module around it: layers keep the names they have in their library.
        network.register_forward_hook(_scaled_to_length_one)
    network.requires_grad_(False)
    return LoadedNetwork(name, network.eval().to(where), preprocessing)


def _scaled_to_length_one(network: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return F.normalize(output, dim=1)


def chosen_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        InputError: No such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here ({error})") from error
    return device


def layer_named(encoder: nn.Module, name: str) -> nn.Module:
    """A layer by its dotted name.

    Raises:
        LayerError: There is none; it lists names that are like it or near it.

    Example::

        >>> layer_named(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "2")
        Traceback (most recent call last):
        captum_embed.errors.LayerError: the network has no layer '2'; it has 0, 1
    """
    modules = dict(encoder.named_modules())
    if name and name in modules:
        return modules[name]
    # The part of the name that exists, and what is in it.
    above = name
    while above and above not in modules:
        above = above.rpartition(".")[0]
    inside = [f"{above}.{child}".lstrip(".") for child, _ in modules[above].named_children()]
    alike = difflib.get_close_matches(name, modules, n=4)
    near = list(dict.fromkeys(alike + inside))[:12]
    raise LayerError(f"the network has no layer {name!r}; it has {', '.join(near)}")


def _initialised(build: Callable[[], nn.Module]) -> nn.Module:
    """Random weights are the same in every process, and nobody's generator is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _from_torchvision(name: str, weights: str) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError(
            f"torchvision:{name} needs torchvision: pip install torchvision"
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
        raise InputError(f"torchvision has no classifier {name!r}; it has {', '.join(near)}, ...")
    state = None if weights == RANDOM else torchvision_state(name, weights)
    chosen = models.get_model_weights(name)["DEFAULT" if weights == RANDOM else weights]
    wanted = chosen.transforms()
    # Some weights of vision transformers are for larger images than 224 x 224.
    size = {"image_size": wanted.crop_size[0]} if name.startswith("vit_") else {}
    network = _initialised(partial(models.get_model, name, weights=None, **size))
    if state is not None:
        network.load_state_dict(state)
    removed = _remove_classifier(network, name)
    preprocessing = Preprocessing(
        image_size=wanted.crop_size[0],
        shorter_side=wanted.resize_size[0],
        mean=tuple(wanted.mean),
        std=tuple(wanted.std),
        interpolation=wanted.interpolation.value,
    )
    return network, preprocessing, (removed,)


_WITHOUT_DOWNLOAD = (
    "give a safetensors file as the checkpoint; or ask for the weights "
    f"'{RANDOM}', which are untrained"
)


def torchvision_state(
    name: str, weights: str = PRETRAINED, *, otherwise: str = _WITHOUT_DOWNLOAD
) -> Mapping[str, Tensor]:
    """Pretrained weights of a torchvision classifier, downloaded once and kept by torch.hub.

    Args:
        name: Such as ``"resnet50"``.
        weights: ``"DEFAULT"``, or another name of the network's weights.
        otherwise: What a user without internet can do instead, for the message.

    Returns:
        The state dict, on the CPU.

    Raises:
        InputError: No such weights, or the download failed; it says what to do without internet.
    """
    from torchvision import models

    known = models.get_model_weights(name)
    if weights != PRETRAINED and weights not in known.__members__:
        raise InputError(
            f"{name} has no weights {weights!r}; known: {', '.join(known.__members__)}, {RANDOM}"
        )
    chosen = known[weights]
    try:
        state: dict[str, Tensor] = chosen.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        target = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
        raise InputError(
            f"the weights {chosen} could not be had ({error}). Without internet: fetch "
            f"{chosen.url} elsewhere and put it at {target}; or {otherwise}"
        ) from error
    # DenseNet's files are from before module names could not hold a dot.
    dotted = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
    return {dotted.sub(r"\1\2", key): tensor for key, tensor in state.items()}


def _remove_classifier(network: nn.Module, name: str) -> str:
    """Puts nothing in the place of the last linear layer; its dotted name."""
    linear = [
        layer
        for layer, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and layer.partition(".")[0] in ("fc", "classifier", "head", "heads")
    ]
    if not linear:
        raise InputError(
            f"torchvision:{name} has no linear layer at its end, and so no embedding in front of "
            "it; take another network, or write a factory"
        )
    above, _, own = linear[-1].rpartition(".")
    setattr(network.get_submodule(above), own, nn.Identity())
    return linear[-1]


def _from_timm(name: str, weights: str) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError as error:
        raise MissingExtraError(f"timm:{name} needs timm: pip install timm") from error
    if weights not in (PRETRAINED, RANDOM):
        raise InputError(
            f"timm:{name}: weights {weights!r}; expected {RANDOM} or {PRETRAINED}; timm names "
            "its weights in the model's name, as timm:resnet50.a1_in1k"
        )
    try:
        network = _initialised(
            partial(timm.create_model, name, pretrained=weights != RANDOM, num_classes=0)
        )
    # Besides its own errors, whatever its download client raises.
    except Exception as error:
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
        advice = (
            f"the names most like it are {', '.join(near)}"
            if name.partition(".")[0] not in timm.list_models() and near
            else f"without internet, give a safetensors file as the checkpoint, or ask for the "
            f"weights '{RANDOM}', which are untrained"
        )
        raise InputError(
            f"timm:{name} could not be made ({type(error).__name__}: {error}); {advice}"
        ) from error
    wanted = resolve_model_data_config(network)
    size = wanted["input_size"][-1]
    preprocessing = Preprocessing(
        image_size=size,
        # As timm does; its transforms round down.
        shorter_side=int(size / wanted["crop_pct"]),
        framing="squash" if wanted["crop_mode"] == "squash" else "crop",
        mean=tuple(wanted["mean"]),
        std=tuple(wanted["std"]),
        interpolation=wanted["interpolation"],
    )
    removed: Any = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return network, preprocessing, (removed,) if isinstance(removed, str) else tuple(removed)


def _from_factory(name: str) -> nn.Module:
    factory = factory_named(name)
    # This runs the user's code, which may raise anything, and may end the program.
    try:
        network = factory()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the network {name} could not be made ({type(error).__name__}: {error}); expected "
            f"{NETWORK_HELP}, where FACTORY takes no argument"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"the network {name} is a {type(network).__name__}, not an nn.Module")
    return network


def factory_named(name: str) -> Callable[..., Any]:
    """What ``PACKAGE.MODULE:FACTORY`` names, also in a file of the working directory.

    Raises:
        InputError: It cannot be imported, or is not callable.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--network {name}: cannot import {attribute!r} ({type(error).__name__}: {error})"
        ) from error
    if not callable(factory):
        raise InputError(f"--network {name}: {attribute!r} is not callable")
    return factory


def _fill(network: nn.Module, path: Path, name: str, unused: Iterable[str]) -> None:
    """Loads a checkpoint; of the classifier that was removed, nothing is needed."""
    given = {
        key: tensor
        for key, tensor in _tensors(path).items()
        if not key.startswith(tuple(f"{removed}." for removed in unused))
    }
    needed = network.state_dict()
    others = [key for key in needed.keys() & given if needed[key].shape != given[key].shape]
    for what, names in (
        ("lacks", sorted(set(needed) - set(given))),
        ("has besides", sorted(set(given) - set(needed))),
        ("has in other shapes", sorted(others)),
    ):
        if names:
            shown = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
            raise InputError(
                f"{printable(path)} is not a checkpoint of {name}: it {what} {len(names)} tensors "
                f"({shown})"
            )
    for key, tensor in given.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{printable(path)}: {key} holds NaN or infinite numbers")
    network.load_state_dict(given)


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"there is no checkpoint file {printable(path)}")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{printable(path)} is not a readable safetensors file ({error}); pickled checkpoints "
            "are not loaded: convert them with safetensors.torch.save_file"
        ) from error
