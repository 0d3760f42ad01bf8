"""What can be wrong with a data set."""

from captum_embed.errors import InputError


class DatasetError(InputError):
    """A data set, or a selection from it, can't be used; the message names the file."""


class UnreadableImageError(DatasetError):
    """One image or mask can't be decoded. A run may count it and go on."""


class BoxError(DatasetError):
    """A bounding box is not finite, has no area, or lies wholly outside its image."""
