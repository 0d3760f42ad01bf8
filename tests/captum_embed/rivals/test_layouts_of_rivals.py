"""Rivals on one network whose layer puts out its channels in three ways, turned round by hand."""

import pytest
import torch
from torch import nn

from captum_embed.errors import LayerError
from captum_embed.rivals import (
    AblationCAM,
    ActivationDecomposition,
    EigenCAM,
    EmbeddingCAM,
    EmbeddingLayerCAM,
    LaFAM,
    ScoreCAM,
    SecondOrderAttribution,
    SimilarityGradCam,
)


class Encoder(nn.Module):
    """A linear layer over the channels, in one of the layouts, and then pooling and a head."""

    def __init__(self, layout):
        super().__init__()
        torch.manual_seed(0)
        self.stated = layout
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        linear, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.layer = nn.Conv2d(6, 5, 1) if layout == "channels_first" else linear
        if layout == "channels_first":
            self.layer.weight.data = linear.weight.data[:, :, None, None]
            self.layer.bias.data = linear.bias.data

    def forward(self, images):
        n, (rows, columns) = len(images), (side // 4 for side in images.shape[2:])
        x = self.stem(images).tanh()
        if self.stated == "channels_first":
            x = self.layer(x)
        elif self.stated == "channels_last":
            x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            patches = x.reshape(n, 6, rows * columns).permute(0, 2, 1)
            tokens = self.layer(torch.cat([images.new_ones(n, 2, 6), patches], 1))
            x = tokens[:, 2:].permute(0, 2, 1).reshape(-1, 5, rows, columns)
        return self.head(x.mean((2, 3)))


OTHERS = {"channels_last": {"layout": "channels_last"},
          "tokens": {"layout": "tokens", "prefix_tokens": 2}}  # fmt: skip
IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
REFERENCE = torch.randn(1, 4, generator=torch.Generator().manual_seed(2))


def score(encoder):
    return lambda images: (encoder(images) * REFERENCE).sum(1).tanh()


RIVALS = {
    "ablation_cam": lambda e, **s: AblationCAM(score(e), e.layer, **s).attribute(IMAGES),
    "decomposition": lambda e, **s: ActivationDecomposition(e, e.layer, e.head, **s).attribute(
        IMAGES, REFERENCE),
    "eigen_cam": lambda e, **s: EigenCAM(e, e.layer, **s).attribute(IMAGES),
    "embedding_cam": lambda e, **s: EmbeddingCAM(e, e.layer, e.head, **s).attribute(
        IMAGES, REFERENCE),
    "layer_cam": lambda e, **s: EmbeddingLayerCAM(score(e), e.layer, **s).attribute(IMAGES),
    "lafam": lambda e, **s: LaFAM(e, e.layer, **s).attribute(IMAGES),
    "score_cam": lambda e, **s: ScoreCAM(score(e), e.layer, softmax=False, **s).attribute(IMAGES),
    "second_order": lambda e, **s: SecondOrderAttribution(e, e.layer, **s).attribute(
        IMAGES, IMAGES.flip(0)),
    "similarity_grad_cam": lambda e, **s: SimilarityGradCam(e, e.layer, **s).attribute(
        IMAGES, REFERENCE),
}  # fmt: skip


@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("name", RIVALS)
def test_a_layout_changes_no_map(name, layout):
    expected = RIVALS[name](Encoder("channels_first"))
    assert expected.shape == (2, 1, 4, 6)
    assert expected.abs().max() > 0
    actual = RIVALS[name](Encoder(layout), **OTHERS[layout])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(LayerError, match="does not look like"):
        RIVALS[name](Encoder(layout))
