"""Losses of pytorch-metric-learning through LossForward against calling them by hand."""

import pytest
import torch
from torch import nn

from captum_embed import EmbeddingLayerGradCam, LossForward
from captum_embed.errors import InputError

losses = pytest.importorskip("pytorch_metric_learning.losses")
miners = pytest.importorskip("pytorch_metric_learning.miners")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
LOSSES = {
    "triplet": lambda: losses.TripletMarginLoss(),
    "contrastive": lambda: losses.ContrastiveLoss(),
    "contrastive, per anchor": lambda: losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer()),
    "nt-xent": lambda: losses.NTXentLoss(),
    "multi-similarity": lambda: losses.MultiSimilarityLoss(),
    "proxy-nca": lambda: losses.ProxyNCALoss(3, 4),
    "proxy-anchor": lambda: losses.ProxyAnchorLoss(3, 4),
    "arcface": lambda: losses.ArcFaceLoss(3, 4),
    "arcface, mean": lambda: losses.ArcFaceLoss(3, 4, reducer=reducers.MeanReducer()),
    "per image": lambda: nn.CrossEntropyLoss(reduction="none"),
}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)
        self.layer.weight.data = torch.randn(4, 3, 3, 3, generator=generator)

    def forward(self, images):
        return self.layer(images).tanh().mean((2, 3))


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def images():
    return torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def gradient_by_hand(encoder, images, value_of):
    kept = []
    handle = encoder.layer.register_forward_hook(lambda _, __, output: kept.append(output))
    value = value_of(encoder(images))
    handle.remove()
    (gradient,) = torch.autograd.grad(value.sum(), kept)
    return gradient


@pytest.mark.parametrize("name", LOSSES)
def test_grad_cam_of_a_loss_is_its_gradient_by_hand(encoder, images, name):
    torch.manual_seed(0)
    loss = LOSSES[name]()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    gradient = gradient_by_hand(encoder, images, lambda e: loss(e, LABELS))
    assert gradient.abs().max() > 0
    for explains, sign in (("match", -1), ("loss", 1)):
        forward = LossForward(encoder, loss, explains)
        assert forward.explains == explains
        grad_cam = EmbeddingLayerGradCam(forward, encoder.layer)
        actual = grad_cam.attribute(images, additional_forward_args=LABELS)
        expected = sign * gradient.mean((2, 3), keepdim=True) * encoder.layer(images)
        torch.testing.assert_close(actual, expected.sum(1, keepdim=True))
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_a_miner_chooses_the_tuples(encoder, images):
    miner, loss = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=0.5)
    expected = loss(encoder(images), LABELS, miner(encoder(images), LABELS))
    actual = LossForward(encoder, loss, "loss", miner=miner)(images, LABELS)
    torch.testing.assert_close(actual, expected)
    assert actual != loss(encoder(images), LABELS)


def test_half_precision_leaves_the_proxies_in_single(encoder, images):
    loss = losses.ArcFaceLoss(3, 4)
    LossForward(encoder.bfloat16(), loss)(images.bfloat16(), LABELS)
    assert loss.W.dtype is torch.float32


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (losses.TripletMarginLoss(reducer=reducers.DoNothingReducer()), "returned dict .*Reducer"),
        (lambda e, labels: e, r"returned \(6, 4\) for 6 images"),
    ],
)
def test_what_a_loss_may_not_return(encoder, images, loss, message):
    with pytest.raises(InputError, match=message):
        LossForward(encoder, loss)(images, LABELS)


def test_what_cannot_be_called_is_refused(encoder):
    with pytest.raises(InputError, match="loss is 'triplet'"):
        LossForward(encoder, "triplet")
    with pytest.raises(InputError, match="miner is 3"):
        LossForward(encoder, nn.Identity(), miner=3)
    with pytest.raises(InputError, match="explains is None"):
        LossForward(encoder, nn.Identity(), None)
