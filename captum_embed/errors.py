"""The errors that captum_embed raises, by what is wrong.

Each is a ``ValueError`` (``ImportError`` for a missing extra, ``RuntimeError`` for a failed
process), so that code which catches the built-in keeps working.
"""


class InputError(ValueError):
    """An argument has the wrong shape, type or content."""


class LayerError(ValueError):
    """The chosen layer never ran, or gave something that Grad-CAM cannot use."""


class BankMismatchError(ValueError):
    """A weight bank does not belong to the network, layer or queries it is used with."""


class BankFileError(ValueError):
    """A weight bank on disk is truncated, altered, or of an unknown format."""


class ProcessError(RuntimeError):
    """Another process of a job failed or ended."""


class MissingExtraError(ImportError):
    """An optional dependency is needed and not installed."""
