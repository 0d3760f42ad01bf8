"""The docs' table of pytorch-metric-learning, against the gradient of each loss by hand."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from captum_embed import EmbeddingLayerGradCam, LossForward, PairForward, build_weight_bank

reason = "pytorch-metric-learning is not installed"
losses = pytest.importorskip("pytorch_metric_learning.losses", reason=reason)
miners = pytest.importorskip("pytorch_metric_learning.miners", reason=reason)
reducers = pytest.importorskip("pytorch_metric_learning.reducers", reason=reason)
distances = pytest.importorskip("pytorch_metric_learning.distances", reason=reason)

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "metric_learning.md"
WORKS = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE.read_text(), re.M))

PROXIES = {"num_classes": 3, "embedding_size": 8}
ARGUMENTS = {
    "CrossBatchMemory": lambda: {
        "loss": losses.ContrastiveLoss(), "embedding_size": 8, "memory_size": 24},
    "FastAPLoss": lambda: {"num_bins": 5},
    "HistogramLoss": lambda: {"n_bins": 10},
    "ManifoldLoss": lambda: {"l": 8},
    "MultipleLosses": lambda: {"losses": [losses.TripletMarginLoss(), losses.ContrastiveLoss()]},
    "P2SGradLoss": lambda: {"num_classes": 3, "descriptors_dim": 8},
    "RankedListLoss": lambda: {"margin": 0.4, "Tn": 10},
    "SelfSupervisedLoss": lambda: {"loss": losses.NTXentLoss()},
    "TripletMarginLoss": lambda: {"margin": 0.5},
    "AngularMiner": lambda: {"angle": 5},
    "ClassWeightedReducer": lambda: {"weights": torch.tensor([1.0, 2.0, 3.0])},
    "MultipleReducers": lambda: {"reducers": {"loss": reducers.MeanReducer()}},
    "ThresholdReducer": lambda: {"low": 0.0},
    **dict.fromkeys(
        ("ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss",
         "ProxyAnchorLoss", "ProxyNCALoss", "SoftTripleLoss", "SphereFaceLoss",
         "SubCenterArcFaceLoss"), lambda: PROXIES),
}  # fmt: skip
LOSS_OF = {
    "PairMarginMiner": "ContrastiveLoss", "PerAnchorReducer": "ContrastiveLoss",
    "DivisorReducer": "MarginLoss", "SNRDistance": "ContrastiveLoss",
}  # fmt: skip

IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 3


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return self.layer(images).tanh().mean((2, 3))


def loss_and_miner(name):
    torch.manual_seed(0)
    own = ARGUMENTS.get(name, dict)()
    loss = LOSS_OF.get(name, "TripletMarginLoss")
    more = ARGUMENTS.get(loss, dict)()
    if name.endswith("Miner") or name.startswith("EmbeddingsAlready"):
        return getattr(losses, loss)(**more), getattr(miners, name)(**own)
    if "Reducer" in name:
        return getattr(losses, loss)(reducer=getattr(reducers, name)(**own), **more), None
    if hasattr(distances, name):
        return getattr(losses, loss)(distance=getattr(distances, name)(), **more), None
    if not hasattr(losses, name):
        pytest.skip(f"this pytorch-metric-learning has no {name}")
    return getattr(losses, name)(**own), None


@pytest.mark.parametrize("name", [name for name, works in WORKS.items() if works == "yes"])
def test_what_works_gives_the_gradient_by_hand_and_a_bank(name):
    encoder = Encoder()
    loss, miner = loss_and_miner(name)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    forward = LossForward(encoder, loss, miner=miner)
    torch.manual_seed(3)
    grad_cam = EmbeddingLayerGradCam(forward, encoder.layer)
    actual = grad_cam.grad_weights(IMAGES, additional_forward_args=LABELS)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())

    kept = []
    encoder.layer.register_forward_hook(lambda _, __, output: kept.append(output))
    embeddings = encoder(IMAGES)
    torch.manual_seed(3)
    mined = () if miner is None else (miner(embeddings, LABELS),)
    (gradient,) = torch.autograd.grad(-loss(embeddings, LABELS, *mined).sum(), kept)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(actual, gradient.mean((2, 3)))

    dataset = list(zip(IMAGES, LABELS.tolist(), strict=True))
    forward = LossForward(encoder := Encoder(), *loss_and_miner(name)[:1], miner=miner)
    bank = build_weight_bank(forward, encoder.layer, dataset, progress=False)
    assert len(bank) == (6 if name == "NPairsLoss" else 12)
    assert bank.metadata["explains"] == "match"


@pytest.mark.parametrize("name", [name for name, works in WORKS.items() if works == "no"])
def test_what_does_not_work_is_refused(name):
    loss, miner = loss_and_miner(name)
    with pytest.raises((ValueError, RuntimeError)):
        LossForward(Encoder(), loss, miner=miner)(IMAGES, LABELS)


@pytest.mark.parametrize("name", ["CosineSimilarity", "DotProductSimilarity", "LpDistance"])
def test_distances_in_the_forward_functions(name):
    distance = getattr(distances, name)()
    encoder, (first, second) = Encoder(), IMAGES.split(6)
    values = distance(encoder(first), encoder(second)).diagonal()
    actual = PairForward(encoder, "distance", distance=distance, explains="loss")(first, second)
    torch.testing.assert_close(actual, -values if distance.is_inverted else values)


def test_a_memory_takes_part_and_stays_as_it_is():
    encoder = Encoder()
    loss = losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, memory_size=24)
    loss(encoder(IMAGES + 1), LABELS)
    before = (loss.queue_idx, loss.embedding_memory.clone())
    forward = LossForward(encoder, loss, "loss")
    with_memory, again = forward(IMAGES, LABELS), forward(IMAGES, LABELS)
    assert with_memory == again != losses.ContrastiveLoss()(encoder(IMAGES), LABELS)
    assert loss.queue_idx == before[0]
    assert torch.equal(loss.embedding_memory, before[1])
    torch.testing.assert_close(loss(encoder(IMAGES), LABELS), with_memory)
