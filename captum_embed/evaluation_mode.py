"""Whether a network is in evaluation mode, as far as that matters.

It is not put there: a mode belongs to the network, which other threads may be using.
"""

from __future__ import annotations

from functools import cache

from torch import nn

from captum_embed.errors import LayerError


def require_evaluation_mode(network: nn.Module) -> None:
    """Refuses a network with a module in training mode that behaves differently in it.

    Args:
        network: The network, and all modules below it.

    Raises:
        LayerError: It has one; the message names it.

    Example::

        >>> require_evaluation_mode(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        >>> require_evaluation_mode(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        Traceback (most recent call last):
        captum_embed.errors.LayerError: the module '1' (BatchNorm2d) is in training mode, ...
    """
    for name, module in network.named_modules():
        if module.training and depends_on_mode(type(module)):  # type: ignore[arg-type]
            raise LayerError(
                f"the module '{name}' ({type(module).__name__}) is in training mode, in which the "
                "network gives other embeddings and maps than the bank was built with; call "
                ".eval() on the network first"
            )


@cache
def depends_on_mode(kind: type[nn.Module]) -> bool:
    """Whether the code of a class of modules reads ``self.training``, as dropout's does.

    Example::

        >>> depends_on_mode(nn.Dropout), depends_on_mode(nn.Conv2d)
        (True, False)
    """
    own = (each for each in kind.__mro__ if each not in (nn.Module, object))
    codes = (getattr(f, "__code__", None) for each in own for f in vars(each).values())
    return any(code is not None and "training" in code.co_names for code in codes)
