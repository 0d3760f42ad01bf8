from collections import OrderedDict

import pytest
import torch

from captum_embed.embeddings import embedding_of
from captum_embed.errors import InputError

EMBEDDINGS = torch.rand(2, 3)
TOKENS = torch.rand(2, 5, 3)


@pytest.mark.parametrize(
    "output",
    [
        EMBEDDINGS,
        (TOKENS, EMBEDDINGS),
        [EMBEDDINGS, None],
        {"embeddings": EMBEDDINGS, "pooler_output": torch.zeros(2, 3)},
        OrderedDict(last_hidden_state=TOKENS, image_embeds=EMBEDDINGS),
        {"last_hidden_state": TOKENS, "pooler_output": EMBEDDINGS},
    ],
)
def test_the_embeddings_are_found(output):
    assert embedding_of(output) is EMBEDDINGS


def test_what_pooling_leaves_is_flattened():
    pooled = EMBEDDINGS[:, :, None, None]
    for output in (pooled, {"last_hidden_state": TOKENS, "pooler_output": pooled}):
        assert torch.equal(embedding_of(output), EMBEDDINGS)
    for whole in (TOKENS, torch.rand(2, 3, 1, 4)):
        assert embedding_of(whole) is whole


@pytest.mark.parametrize(
    "output",
    [
        (EMBEDDINGS, EMBEDDINGS),
        (TOKENS,),
        {"last_hidden_state": TOKENS},
        {"pooler_output": None},
        {},
        None,
        "x",
    ],
)
def test_what_cannot_be_known_is_refused(output):
    with pytest.raises(InputError, match="embedding_func"):
        embedding_of(output)
