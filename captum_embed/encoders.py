"""What is asked of an encoder: its embeddings, its mode, and the fingerprint of its weights.

A mode belongs to the network, which other threads may be using. So a query asks for evaluation
mode and never sets it; a bank that is built, which takes long, sets it for that time.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from captum_embed.errors import InputError, LayerError

_known_fingerprints: WeakKeyDictionary[nn.Module, tuple[Hashable, str]] = WeakKeyDictionary()
_lock = threading.Lock()
# Numbers per tensor that are looked at to tell whether a network has changed.
_SAMPLE = 16

# The names in the outputs of `transformers` and `open_clip`, the most definite first.
_NAMES = ("embeddings", "image_embeds", "pooler_output")


def embedding_of(output: Any) -> Tensor:
    """The embeddings (N, D) in the output of an encoder.

    Args:
        output: A tensor, as it is; a mapping, such as a ``ModelOutput`` of ``transformers``, that
            holds ``embeddings``, ``image_embeds`` or ``pooler_output``; or a tuple or list with
            one tensor (N, D) in it. What pooling leaves, (N, D, 1, 1), is flattened.

    Returns:
        The embeddings.

    Raises:
        InputError: None or several could be meant.

    Example::

        >>> import torch
        >>> embedding_of((torch.zeros(2, 4, 7, 7), torch.ones(2, 3))).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output.flatten(1) if output.dim() > 2 and output.shape[2:].numel() == 1 else output
    advice = "let it return embeddings (N, D), or pass embedding_func=..., where that is taken"
    if isinstance(output, Mapping):
        for name in _NAMES:
            if isinstance(output.get(name), Tensor):
                return embedding_of(output[name])
        raise InputError(
            f"the encoder returned {type(output).__name__} with {sorted(map(str, output))}; "
            f"expected a tensor, or one of {list(_NAMES)} in it: {advice}"
        )
    if isinstance(output, (tuple, list)):
        matrices = [item for item in output if isinstance(item, Tensor) and item.dim() == 2]
        if len(matrices) == 1:
            return matrices[0]
        shapes = [tuple(i.shape) if isinstance(i, Tensor) else type(i).__name__ for i in output]
        raise InputError(
            f"the encoder returned {type(output).__name__} of {shapes}; expected one tensor (N, D) "
            f"in it: {advice}"
        )
    raise InputError(
        f"the encoder returned {type(output).__name__}; expected embeddings (N, D): {advice}"
    )


def embedding_vectors(output: Any) -> Tensor:
    """What :func:`embedding_of` finds in an encoder's output, refused unless it is (N, D)."""
    embeddings = embedding_of(output)
    if embeddings.dim() != 2:
        raise InputError(
            f"the encoder returned shape {tuple(embeddings.shape)}; expected embeddings (N, D): "
            "pool and flatten in the encoder"
        )
    return embeddings


def same_embedding(first: Tensor, second: Tensor, distance: Any = "cosine") -> bool:
    """Whether embeddings (1, D) are next to equal; with ``"cosine"``, but for their lengths.

    Their similarity is then at its highest, where it has no slope that explains it. Of a distance
    that is a function, nothing is known.

    Example::

        >>> same_embedding(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.001]]))
        True
    """
    one, other = first.detach().float(), second.detach().float()
    if distance == "cosine":
        one, other = F.normalize(one), F.normalize(other)
    return isinstance(distance, str) and float((one - other).norm()) < 1e-3 * float(one.norm())


def encoder_of(forward_func: Any) -> Any:
    """What a forward function embeds its images with: its ``.encoder``.

    Of one that ``torch.compile`` wraps, the network itself: compiled code runs past its layers.

    Raises:
        InputError: It has none.
    """
    wrapped = getattr(forward_func, "module", forward_func)
    encoder = getattr(forward_func, "encoder", getattr(wrapped, "encoder", None))
    if encoder is None:
        raise InputError(
            "with a weight bank the query must be embedded, and forward_func "
            f"({type(forward_func).__name__}) has no `encoder`; pass embedding_func=..., which "
            "maps images to embeddings (N, D)"
        )
    return getattr(encoder, "_orig_mod", encoder)


def require_evaluation_mode(*networks: Any) -> None:
    """Refuses a network with a module in training mode that behaves differently in it.

    Args:
        *networks: Networks, with all modules below them, or callables that hold such: methods of
            a network or of an object with one, functions that name one, partial functions.

    Raises:
        LayerError: One has; the message names the module.

    Example::

        >>> require_evaluation_mode(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        >>> require_evaluation_mode(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        Traceback (most recent call last):
        captum_embed.errors.LayerError: the module '1' (BatchNorm2d) is in training mode, ...
    """
    for network in (held for each in networks for held in _networks_of(each)):
        for name, module in network.named_modules():
            if module.training and depends_on_mode(type(module)):  # type: ignore[arg-type]
                named = f"the module '{name}'" if name else "the network"
                raise LayerError(
                    f"{named} ({type(module).__name__}) is in training mode, in which "
                    "the network gives other embeddings and maps than the bank was built with; "
                    "call .eval() on the network first"
                )


def _networks_of(function: Any, depth: int = 4) -> list[nn.Module]:
    """The modules that a callable is, is a method of, or holds, as far as can be seen."""
    if isinstance(function, nn.Module):
        return [function]
    if isinstance(function, partial):
        held = [function.func, *function.args, *function.keywords.values()]
    elif isinstance(function, dict):
        held = list(function.values())
    elif isinstance(function, (list, tuple, set)):
        held = list(function)
    elif inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        held = [*names.nonlocals.values(), *names.globals.values()]
    else:
        owner = getattr(function, "__self__", function)
        held = [owner, *getattr(owner, "__dict__", {}).values()]
    modules = [one for one in held if isinstance(one, nn.Module)]
    if depth > 0:
        for one in held:
            written_here = (inspect.isfunction(one) or inspect.ismethod(one)) and not (
                one.__module__ or ""
            ).startswith(("torch", "captum"))
            if written_here or isinstance(one, (dict, list, tuple, set, partial)):
                modules += _networks_of(one, depth - 1)
    return modules


@cache
def depends_on_mode(kind: type[nn.Module]) -> bool:
    """Whether the code of a class of modules reads ``self.training``, as dropout's does.

    Example::

        >>> depends_on_mode(nn.Dropout), depends_on_mode(nn.Conv2d)
        (True, False)
    """
    own = (each for each in kind.__mro__ if each not in (nn.Module, object))
    codes = (getattr(f, "__code__", None) for each in own for f in vars(each).values())
    return any(code is not None and _names_training(code) for code in codes)


def _names_training(code: CodeType) -> bool:
    """Whether code names ``training``, or quotes it for ``getattr``, or a function inside does."""
    return (
        "training" in code.co_names
        or "training" in code.co_consts
        or any(isinstance(one, CodeType) and _names_training(one) for one in code.co_consts)
    )


@contextmanager
def evaluation_mode(module: object) -> Iterator[None]:
    """Puts a module and all below it in evaluation mode, and back in the modes they were in."""
    modules = module.modules() if isinstance(module, nn.Module) else ()
    modes = [(each, each.training) for each in modules]
    try:
        for each, _ in modes:
            # Not eval(): some modules do more in it than they would undo.
            each.training = False
        yield
    finally:
        for each, training in modes:
            each.training = training


def encoder_fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a module's state dict.

    Networks of equal weights have equal fingerprints, on whatever device they are; wrappers
    (``DataParallel``, ``DistributedDataParallel``, ``torch.compile``) make no difference.

    Args:
        module: Network whose parameters and buffers are initialised.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A lazy parameter has no value yet.

    Example::

        >>> from torch import nn
        >>> layer = nn.Linear(2, 3)
        >>> fingerprint = encoder_fingerprint(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> len(fingerprint), encoder_fingerprint(layer) == fingerprint
        (64, False)
    """
    digest = hashlib.sha256()
    for name, value in _state(module):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(_bytes(value.detach().reshape(-1)))
    return digest.hexdigest()


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    # A module's extra state is of any type; weights are tensors.
    state = [
        (name, value)
        for name, value in sorted(unwrapped(module).state_dict().items())
        if isinstance(value, Tensor)
    ]
    for name, value in state:
        if is_lazy(value):
            raise InputError(
                f"parameter '{name}' is not initialised; run the network once before taking its "
                "fingerprint"
            )
    return state


def _bytes(flat: Tensor) -> bytes | memoryview:
    return flat.cpu().contiguous().view(torch.uint8).numpy().data


def known_fingerprint(module: nn.Module) -> str:
    """The fingerprint, computed once per network and again when its weights have changed."""
    network = unwrapped(module)
    state = _state(network)
    # Changes through ``.data`` do not count as a version: a sample of the values shows them.
    version = tuple(
        (name, value.data_ptr(), value.dtype, value.shape, version_of(value))
        for name, value in state
    )
    sample = b"".join(
        _bytes(value.detach().flatten()[:: max(1, value.numel() // _SAMPLE)]) for _, value in state
    )
    key = version, sample
    with _lock:
        known = _known_fingerprints.get(network)
    if known is None or known[0] != key:
        known = key, encoder_fingerprint(network)
        with _lock:
            _known_fingerprints[network] = known
    return known[1]


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def version_of(tensor: Tensor) -> int:
    """Counts changes in place; those through ``.data`` and other libraries are not seen."""
    # Tensors made in inference mode do not count, and cannot be changed outside it.
    return 0 if tensor.is_inference() else tensor._version
