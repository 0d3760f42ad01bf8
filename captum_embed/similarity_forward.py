"""The similarity to given references, less that to foils, as a forward function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.encoder_forward import (
    Distance,
    EncoderForward,
    distance_function,
    embedding_vectors,
    evaluation_mode,
)
from captum_embed.errors import InputError

_REFERENCES_AT_ONCE = 32


class SimilarityForward(EncoderForward):
    r"""How near each image is to given references, less how near it is to given foils.

    A score, so ``explains`` is ``"match"``. With :math:`\hat e` an embedding of length one,

    .. math::
        s(x) = \hat e(x) \cdot \mathrm{mean}_r\, \hat e_r
             - \hat e(x) \cdot \mathrm{mean}_f\, \hat e_f

    which is the mean cosine similarity to the references less that to the foils. Of another
    distance, :math:`s(x) = d(e(x), \mathrm{mean}_f\, e_f) - d(e(x), \mathrm{mean}_r\, e_r)`.

    References given as images are encoded once, here, without a graph and in evaluation mode. A
    network that is trained further afterwards is noticed, and refused.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        references: Images (R, ...) of four dimensions or more, or embeddings (R, D); or
            embeddings (N, R, D), a set of its own for each image of a call.
        foils: As the references, which they are weighed against; or None.
        distance: ``"cosine"``, or another as in :class:`MetricForward`.

    Raises:
        InputError: References or foils are not of these shapes; unknown distance.

    Source: the similarity as the score of Grad-CAM: Chen et al., WACV 2020, section 2; foils:
        Williford et al., Explainable Face Recognition, ECCV 2020, section 3.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import SimilarityForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> reference, foils = torch.rand(1, 3, 8, 8), torch.rand(5, 4)  # foils: embeddings
        >>> SimilarityForward(encoder, reference, foils)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2])
    """

    reference: Tensor
    foil: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        references: Tensor,
        foils: Tensor | None = None,
        distance: Distance = "cosine",
    ) -> None:
        super().__init__(encoder, "match")
        distance_function(distance)
        self.distance = distance
        foil = None if foils is None else self._mean("foils", foils)
        self.register_buffer("reference", self._mean("references", references), persistent=False)
        self.register_buffer("foil", foil, persistent=False)
        given = (one for one in (references, foils) if one is not None)
        self._encoded_with = self._versions() if any(one.dim() > 3 for one in given) else {}

    def forward(self, images: Tensor) -> Tensor:
        """One score per image.

        Args:
            images: Shape (N, ...).

        Returns:
            Shape (N,).

        Raises:
            InputError: The encoder was trained further since the references were encoded; or
                there is a set of references for each of another number of images.
        """
        versions = self._versions()
        if any(
            versions.get(key, version) != version for key, version in self._encoded_with.items()
        ):
            raise InputError(
                "the encoder's parameters have changed since the references were encoded; make a "
                "new SimilarityForward"
            )
        embeddings = self.encode([images])[0]
        score = self._similarity(embeddings, self.reference)
        return score if self.foil is None else score - self._similarity(embeddings, self.foil)

    def _similarity(self, embeddings: Tensor, target: Tensor) -> Tensor:
        if target.shape[0] not in (1, len(embeddings)) or target.shape[1] != embeddings.shape[1]:
            raise InputError(
                f"references or foils have a mean of shape {tuple(target.shape)}, the images "
                f"embeddings of shape {tuple(embeddings.shape)}; expected equal widths, and one "
                "set for all images or one for each"
            )
        target = target.to(embeddings.device)
        if self.distance == "cosine":
            return (F.normalize(embeddings) * target).sum(1)
        return -distance_function(self.distance)(embeddings, target)

    def _mean(self, name: str, given: Tensor) -> Tensor:
        if not isinstance(given, Tensor) or given.dim() < 2 or 0 in given.shape:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"{name} are {shape}; expected images (R, ...), or embeddings (R, D) or (N, R, D)"
            )
        embeddings = given.detach() if given.dim() <= 3 else self._encoded(given)
        if self.distance == "cosine":
            embeddings = F.normalize(embeddings, dim=-1)
        mean = embeddings.mean(-2)
        return mean if mean.dim() == 2 else mean[None]

    def _encoded(self, images: Tensor) -> Tensor:
        device = next(self.encoder.parameters(), images).device
        with evaluation_mode(self.encoder), torch.no_grad():
            parts = images.to(device).split(_REFERENCES_AT_ONCE)
            return torch.cat([embedding_vectors(self.encoder(part)) for part in parts])

    def _versions(self) -> dict[int, int]:
        # A parameter's version counts its changes in place, as optimizers make them.
        return {id(one): one._version for one in self.encoder.parameters()}
