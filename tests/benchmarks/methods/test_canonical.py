import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn

from benchmarks.methods import MethodUnavailableError, Query, Subject
from benchmarks.methods.canonical import Elementwise, LayerOutput, UnitLength, canonical
from benchmarks.methods.match import as_linear


def modules_run(network: nn.Module, image: Tensor) -> list[nn.Module]:
    ran: list[nn.Module] = []
    leaves = [m for m in network.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda m, _, __: ran.append(m)) for m in leaves]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return ran


def test_the_copy_gives_the_same_embeddings_and_layer(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    copy = canonical(tiny_subject.network, tiny_subject.layer)
    outputs: list[Tensor] = []
    hook = copy.layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        embedding = copy.encoder(tiny_query.image)
        torch.testing.assert_close(embedding, tiny_subject.network(tiny_query.image))
        torch.testing.assert_close(outputs[0], tiny_subject.layer(tiny_query.image))
    hook.remove()


def test_every_operation_has_a_module_of_its_own(tiny_subject: Subject, tiny_query: Query) -> None:
    copy = canonical(tiny_subject.network, tiny_subject.layer)
    ran = modules_run(copy.encoder, tiny_query.image)
    assert len(ran) == len(set(ran))
    kinds = [type(module) for module in ran]
    # Two runs of one module, and one as a function.
    assert kinds.count(nn.ReLU) == 3
    assert kinds.count(Addition_Module) == 1
    assert kinds.count(Elementwise) == 1
    assert kinds.count(UnitLength) == 1
    assert kinds.count(LayerOutput) == 1
    assert not any(m.inplace for m in ran if isinstance(m, nn.ReLU))


def test_the_network_itself_is_left_alone(tiny_subject: Subject) -> None:
    network = tiny_subject.network
    before = [(name, module, set(vars(module))) for name, module in network.named_modules()]
    copy = canonical(network, tiny_subject.layer)
    after = [(name, module, set(vars(module))) for name, module in network.named_modules()]
    assert before == after
    shared = {id(p) for p in network.parameters()}
    assert {id(p) for p in copy.encoder.parameters()} <= shared


def test_activations_of_all_kinds_become_elementwise_modules() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activations = nn.Sequential(nn.SiLU(inplace=True), nn.ReLU6(), nn.GELU())
            self.end = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = self.activations(x)
            x = torch.clamp(F.hardswish(x), min=-0.1, max=2).sigmoid()
            return F.normalize(self.end(F.leaky_relu(x, 0.2)).flatten(1), p=2.0, dim=-1)

    network = Network().eval()
    copy = canonical(network, network.activations)
    image = torch.randn(2, 3, 4, 4)
    kinds = [type(module) for module in modules_run(copy.encoder, image)]
    assert kinds.count(Elementwise) == 7
    assert kinds.count(UnitLength) == 1
    torch.testing.assert_close(copy.encoder(image), network(image))


def test_what_has_no_module_is_named() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) * x.sigmoid()).flatten(1)

    network = Gated()
    copy = canonical(network, network.conv)
    assert copy.beside(frozenset({nn.Conv2d, Elementwise, LayerOutput})) == (
        "flatten, mul, view_as"
    )
    assert copy.beside(copy.operations) == ""


def test_a_network_that_cannot_be_traced_is_unavailable_with_the_reason() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    network = Branching()
    with pytest.raises(MethodUnavailableError, match=r"torch\.fx cannot trace the network: .*flow"):
        canonical(network, network.conv)


def test_a_layer_that_runs_twice_or_never_is_unavailable() -> None:
    conv = nn.Conv2d(3, 3, 1)
    with pytest.raises(MethodUnavailableError, match="runs 2 times"):
        canonical(nn.Sequential(conv, conv), conv)
    with pytest.raises(MethodUnavailableError, match="runs 0 times"):
        canonical(nn.Sequential(conv), nn.ReLU())


def test_the_match_as_a_layer_is_the_match(tiny_subject: Subject, tiny_query: Query) -> None:
    references, foils = tiny_query.references
    with torch.no_grad():
        embedding = tiny_subject.network(tiny_query.image)
        linear = as_linear(references, foils)(embedding)[0, 0]
        match = tiny_subject.forward(tiny_query.image, references, foils)[0]
    by_hand = sum(float(embedding[0] @ r) for r in references[0]) / len(references[0])
    by_hand -= sum(float(embedding[0] @ f) for f in foils[0]) / len(foils[0])
    assert float(linear) == pytest.approx(by_hand, abs=1e-6)
    assert float(match) == pytest.approx(by_hand, abs=1e-6)


def test_the_match_is_the_mean_over_all_tuples_of_the_distances_difference(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    references, foils = tiny_query.references
    with torch.no_grad():
        anchor = tiny_subject.network(tiny_query.image)[0]
        match = tiny_subject.forward(tiny_query.image, references, foils)[0]
    tuples = [
        ((anchor - foil) ** 2).sum() - ((anchor - reference) ** 2).sum()
        for reference in references[0]
        for foil in foils[0]
    ]
    torch.testing.assert_close(2 * match, torch.stack(tuples).mean(), atol=1e-5, rtol=1e-4)
