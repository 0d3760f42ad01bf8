"""The questions: one function each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from captum_embed.encoders import same_embedding
from captum_embed.errors import InputError
from captum_embed.metric_forwards import TripletForward
from captum_embed.questions.answers import Answer, Borrowed
from captum_embed.questions.explainer import Explainer, NegatedSimilarity, Settings
from captum_embed.visualization import Picture, Sign
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.queries import Neighbors


def why_alike(
    encoder: nn.Module,
    first: Picture,
    second: Picture,
    foils: Tensor | Sequence[Picture] | None = None,
    **settings: Unpack[Settings],
) -> Answer:
    """Why are these two alike? A map on both.

    The score is the similarity of the two. Above zero a place makes them alike, below zero it
    sets them apart.

    Args:
        encoder: Maps images (N, C, H, W) to embeddings (N, D), in evaluation mode.
        first: A PIL image; an array, as in :func:`visualization.picture`; or a tensor (C, H, W)
            or (1, C, H, W) as the encoder takes it.
        second: Likewise.
        foils: What the two are compared with, such as the rest of the gallery: pictures, a batch
            (R, C, H, W), or embeddings (R, D). Their mean similarity is taken from the score.
        settings: See :class:`Settings`.

    Returns:
        Maps of ``first`` and ``second``.

    Raises:
        InputError: A picture is none of these; or the two are the same to the network, without
            foils.
        LayerError: The encoder is in training mode; or the layer cannot be told or explained.

    Example::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_embed import questions
        >>> encoder = resnet18(num_classes=8).eval()
        >>> first, second = torch.rand(2, 3, 96, 96)
        >>> answer = questions.why_alike(encoder, first, second)
        >>> [tuple(one.shape) for one in answer.maps]
        [(1, 1, 3, 3), (1, 1, 3, 3)]
        >>> figure, axes = answer.draw()
    """
    return _pair("Why are these two alike?", "all", encoder, first, second, foils, settings)


def why_not(
    encoder: nn.Module,
    first: Picture,
    second: Picture,
    foils: Tensor | Sequence[Picture] | None = None,
    **settings: Unpack[Settings],
) -> Answer:
    """Why are these two not (more) alike? What speaks against, on both.

    The score and the maps are those of :func:`why_alike`; the answer is what lies below zero, and
    that is what is drawn. Of cosine similarity, it is what one has and the other has less of.

    Args:
        encoder: As in :func:`why_alike`.
        first: As in :func:`why_alike`.
        second: As in :func:`why_alike`.
        foils: As in :func:`why_alike`.
        settings: See :class:`Settings`.

    Returns:
        Maps of ``first`` and ``second``, with ``sign`` ``"negative"``.

    Raises:
        InputError: As :func:`why_alike`.
        LayerError: As :func:`why_alike`.

    Example::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_embed import questions
        >>> encoder = resnet18(num_classes=8).eval()
        >>> answer = questions.why_not(encoder, *torch.rand(2, 3, 96, 96))
        >>> against = answer.maps[0].clamp(max=0)
    """
    return _pair(
        "Why are these two not alike?", "negative", encoder, first, second, foils, settings
    )


def why_before(
    encoder: nn.Module,
    query: Picture,
    hit: Picture,
    other: Picture,
    **settings: Unpack[Settings],
) -> Answer:
    """Why does this hit come before that one?

    The score is the similarity of the query to the hit, less that to the other. It is above zero
    where the hit comes first. All three maps explain this one score: above zero a place speaks
    for the hit before the other, below zero for the other before the hit.

    Args:
        encoder: As in :func:`why_alike`.
        query: A picture, as in :func:`why_alike`.
        hit: Likewise.
        other: Likewise.
        settings: See :class:`Settings`.

    Returns:
        Maps of ``query``, ``hit`` and ``other``.

    Raises:
        InputError: As :func:`why_alike`.
        LayerError: As :func:`why_alike`.

    Example::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_embed import questions
        >>> encoder = resnet18(num_classes=8).eval()
        >>> answer = questions.why_before(encoder, *torch.rand(3, 3, 96, 96))
        >>> answer.names
        ('query', 'hit', 'other')
    """
    ask = Explainer(encoder, **settings)
    images = tuple(ask.prepared(each) for each in (query, hit, other))
    of_query, of_hit, of_other = (ask.embedded([image]) for image in images)
    score = ask.similarity(of_hit, of_other)
    forwards = (score, ask.similarity(of_query), NegatedSimilarity(ask.similarity(of_query)))
    maps = tuple(ask.map_of(f, i) for f, i in zip(forwards, images, strict=True))
    scores = (ask.score_of(score, images[0]),) * 3
    return Answer(
        question="Why does this hit come before the other?",
        names=("query", "hit", "other"),
        images=images,
        maps=maps,
        scores=scores,
        ends=("for the other", "for the hit"),
        normalization=ask.normalization,
    )


def class_look(
    encoder: nn.Module,
    images: Tensor | Sequence[Picture],
    others: Tensor | Sequence[Picture] | None = None,
    names: Sequence[str] | None = None,
    **settings: Unpack[Settings],
) -> Answer:
    """What does this class look like to the network?

    The score of each picture is its mean similarity to the other pictures of the class, less that
    to ``others``. Above zero a place makes it one of its class.

    Args:
        encoder: As in :func:`why_alike`.
        images: Two or more pictures of the class, or a batch (N, C, H, W).
        others: Pictures of other classes, a batch (R, C, H, W), or embeddings (R, D).
        names: Of the pictures. Default: their numbers, from 1.
        settings: See :class:`Settings`.

    Returns:
        A map of each picture, in the order given. The largest score is the most typical.

    Raises:
        InputError: There are fewer than two pictures; or as :func:`why_alike`.
        LayerError: As :func:`why_alike`.

    Example::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_embed import questions
        >>> encoder = resnet18(num_classes=8).eval()
        >>> cats, dogs = torch.rand(2, 3, 3, 96, 96)
        >>> answer = questions.class_look(encoder, cats, others=dogs)
        >>> len(answer.maps), len(answer.scores)
        (3, 3)
    """
    ask = Explainer(encoder, **settings)
    shown = ask.prepared_all("images", images)
    if len(shown) < 2:
        raise InputError(
            f"images hold {len(shown)} pictures of the class; expected two or more, for each is "
            "compared with the others"
        )
    labels = [str(place + 1) for place in range(len(shown))] if names is None else list(names)
    if len(labels) != len(shown):
        raise InputError(f"there are {len(labels)} names for {len(shown)} pictures")
    own, foils = ask.embedded(shown), ask.references("others", others)
    forwards = [
        ask.similarity(torch.cat([own[:place], own[place + 1 :]]), foils)
        for place in range(len(shown))
    ]
    maps = tuple(ask.map_of(f, i) for f, i in zip(forwards, shown, strict=True))
    scores = tuple(ask.score_of(f, i) for f, i in zip(forwards, shown, strict=True))
    return Answer(
        question="What does this class look like to the network?",
        names=tuple(labels),
        images=tuple(shown),
        maps=maps,
        scores=scores,
        ends=("unlike the class", "like the class"),
        normalization=ask.normalization,
    )


def whose_weights(
    encoder: nn.Module,
    query: Picture,
    weight_bank: WeightBank,
    pictures: Mapping[str, Picture] | Sequence[Picture] | Callable[[int], Picture] | None = None,
    *,
    num_neighbors: int | None = None,
    exclude: Collection[Any] | None = None,
    **settings: Unpack[Settings],
) -> Borrowed:
    """Whose weights were borrowed for the map of this picture?

    Args:
        encoder: As in :func:`why_alike`.
        query: A picture, as in :func:`why_alike`.
        weight_bank: Of this network and layer, from :func:`build_weight_bank`; it explains the
            match.
        pictures: Of the bank's entries, to draw them: by key, in the bank's order, or a function
            from an entry's index.
        num_neighbors: How many entries' weights are averaged. Default: the recipe's.
        exclude: Keys or labels of entries to leave out, such as the query's own.
        settings: See :class:`Settings`.

    Returns:
        The query's map, and the neighbours, nearest first.

    Raises:
        InputError: As :func:`why_alike`.
        LayerError: As :func:`why_alike`.
        BankMismatchError: The bank is of another network or layer, or explains the loss.

    Example::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_embed import TripletForward, build_weight_bank, questions, recipes
        >>> encoder = resnet18(num_classes=8).eval()
        >>> images, layer = torch.rand(4, 3, 96, 96), recipes.EXPLAIN.layer_of(encoder)
        >>> dataset = list(zip(images, [0, 0, 1, 1]))
        >>> bank = build_weight_bank(TripletForward(encoder), layer, dataset, progress=False)
        >>> answer = questions.whose_weights(encoder, images[2], bank, images, num_neighbors=2)
        >>> answer.neighbors.indices[0, 0].item(), answer.neighbors.distances.shape
        (2, torch.Size([1, 2]))
        >>> figure, axes = answer.draw()
    """
    ask = Explainer(encoder, **settings)
    image = ask.prepared(query)
    grad_cam = ask.grad_cam(TripletForward(encoder), weight_bank=weight_bank)
    chosen: dict[str, Any] = {"num_neighbors": num_neighbors, "exclude": exclude}
    borrowed = grad_cam.attribute(image, **chosen)
    neighbors = cast(Neighbors, grad_cam.neighbors(image, **chosen))
    return Borrowed(image, borrowed, neighbors, pictures, ask.normalization)


def _pair(
    question: str,
    sign: Sign,
    encoder: nn.Module,
    first: Picture,
    second: Picture,
    foils: Tensor | Sequence[Picture] | None,
    settings: Settings,
) -> Answer:
    ask = Explainer(encoder, **settings)
    images = ask.prepared(first), ask.prepared(second)
    against = ask.references("foils", foils)
    of_first, of_second = (ask.embedded([each]) for each in images)
    if against is None and same_embedding(of_first, of_second, ask.distance):
        raise InputError(
            "the two pictures are the same to the network: nothing could make them more alike, so "
            "no part of them makes a difference; pass foils=..., pictures to compare them with"
        )
    forwards = [ask.similarity(each, against) for each in (of_second, of_first)]
    maps = tuple(ask.map_of(f, i) for f, i in zip(forwards, images, strict=True))
    scores = tuple(ask.score_of(f, i) for f, i in zip(forwards, images, strict=True))
    return Answer(
        question=question,
        names=("first", "second"),
        images=images,
        maps=maps,
        scores=scores,
        sign=sign,
        ends=("sets them apart", "makes them alike"),
        normalization=ask.normalization,
    )
