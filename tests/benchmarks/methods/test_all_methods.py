from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.methods import METHODS, Method, MethodUnavailableError, Query, Subject, heatmap
from benchmarks.methods.match import Match

# They take a vision transformer: test_attention_methods.py
OF_ATTENTION = {"le_grad", "gradient_attention_rollout"}
OTHERS = [
    n
    for n, m in METHODS.items()
    if (m.family.startswith("captum") or m.family == "rival") and n not in OF_ATTENTION
]
SLOW = [name for name in OTHERS if METHODS[name].cost == "slow"]
ISSUE = {
    "LayerGradCam", "GuidedGradCam", "LayerActivation", "LayerGradientXActivation",
    "InternalInfluence", "LayerConductance", "LayerIntegratedGradients", "LayerDeepLift",
    "LayerDeepLiftShap", "LayerGradientShap", "LayerLRP", "LayerFeatureAblation", "Saliency",
    "InputXGradient", "IntegratedGradients", "DeepLift", "DeepLiftShap", "GradientShap",
    "GuidedBackprop", "Deconvolution", "LRP", "Occlusion", "FeatureAblation",
    "ShapleyValueSampling", "KernelShap", "Lime", "NoiseTunnel",
}  # fmt: skip


def captum_class(method: Method) -> str:
    return method.title.partition(",")[0]


def test_every_attribution_of_captum_has_its_entry() -> None:
    methods = [m for m in METHODS.values() if m.family.startswith("captum")]
    entries = [captum_class(m) for m in methods if "_loss" not in m.name and "_block" not in m.name]
    assert len(entries) == len(set(entries))
    assert set(entries) == ISSUE


def test_captum_has_no_other_attribution_for_images() -> None:
    """Neuron attributions explain a neuron; the rest explain text, training data or permute."""
    import captum.attr

    classes = {
        name
        for name, value in vars(captum.attr).items()
        if isinstance(value, type)
        and issubclass(value, captum.attr.Attribution)
        and not name.startswith("Neuron")
    }
    abstract = {
        "Attribution", "GradientAttribution", "PerturbationAttribution", "InternalAttribution",
        "LayerAttribution",
    }  # fmt: skip
    elsewhere = {
        # Batches of images permuted among each other; every superpixel order; a kernel by hand.
        "FeaturePermutation", "LayerFeaturePermutation", "ShapleyValues", "LimeBase",
        "DataLoaderAttribution", "LLMAttribution", "LLMGradientAttribution",
        "RemoteLLMAttribution", "BaseLLMAttribution",
    }  # fmt: skip
    assert classes - abstract - elsewhere == ISSUE


@pytest.mark.parametrize("name", OTHERS)
def test_a_map_is_finite_and_of_the_image_s_size(
    name: str, tiny_subject: Subject, tiny_query: Query
) -> None:
    signed = METHODS[name].build(tiny_subject)(tiny_query)
    assert signed.ndim == 4
    assert len(signed) == 1
    assert torch.isfinite(signed).all()
    assert signed.abs().max() > 0
    size = (tiny_query.image.shape[2], tiny_query.image.shape[3])
    assert heatmap(signed, size, METHODS[name].customary).shape == size


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    counts: list[int] = []
    hook = module.register_forward_hook(lambda _, args, __: counts.append(len(args[0])))
    try:
        yield counts
    finally:
        hook.remove()


def evaluated(name: str, subject: Subject) -> nn.Module:
    """A module that runs once for each evaluation, of the layer and behind or of the whole."""
    return subject.network.head if METHODS[name].shares_forward else subject.layer.stem


@pytest.mark.parametrize("budget", [12, 60])
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_method_keeps_to_its_budget(
    name: str, budget: int, tiny_subject: Subject, tiny_query: Query
) -> None:
    explain = METHODS[name].build(replace(tiny_subject, budget=budget))
    with counted(evaluated(name, tiny_subject)) as counts:
        explain(tiny_query)
    assert 2 <= sum(counts) <= budget + 1


@pytest.mark.parametrize("name", SLOW)
def test_a_larger_budget_buys_more(name: str, tiny_subject: Subject, tiny_query: Query) -> None:
    spent = []
    # Score-CAM takes no more evaluations than there are channels.
    for budget in (6, 12) if name == "score_cam" else (12, 48):
        explain = METHODS[name].build(replace(tiny_subject, budget=budget))
        with counted(evaluated(name, tiny_subject)) as counts:
            explain(tiny_query)
        spent.append(sum(counts))
    assert spent[0] < spent[1]


DRAWING = (
    "layer_deep_lift_shap", "layer_gradient_shap", "deep_lift_shap", "gradient_shap",
    "noise_tunnel_saliency", "shapley_value_sampling", "kernel_shap", "lime", "relax",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_map_depends_on_the_image_and_the_seed_alone(
    name: str, tiny_subject: Subject, tiny_query: Query
) -> None:
    explain = METHODS[name].build(tiny_subject)
    torch.manual_seed(98)
    np.random.seed(98)  # noqa: NPY002
    first = explain(tiny_query)
    other = replace(tiny_query, image=tiny_query.image.flip(3))
    explain(other)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert torch.equal(explain(tiny_query), first)
    reseeded = METHODS[name].build(replace(tiny_subject, seed=6))(tiny_query)
    assert torch.equal(reseeded, first) == (name.removesuffix("_block") not in DRAWING)


@pytest.mark.parametrize("name", DRAWING)
def test_every_image_has_its_own_draws(name: str, tiny_subject: Subject, tiny_query: Query) -> None:
    """Two images that differ in one value, by less than any map shows."""
    explain = METHODS[name].build(tiny_subject)
    image = tiny_query.image.clone()
    image[0, 0, 0, 0] += 1e-6
    moved = (explain(replace(tiny_query, image=image)) - explain(tiny_query)).abs().max()
    assert moved > 1e-4 * explain(tiny_query).abs().max()


def states(network: nn.Module) -> list[object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, module.training, sorted(vars(module)), [len(getattr(module, h)) for h in hooks])
        for name, module in network.named_modules()
    ]


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_is_left_behind(name: str, tiny_subject: Subject, tiny_query: Query) -> None:
    network = tiny_subject.network
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    before = states(network)
    image = tiny_query.image.clone()
    torch_rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    grad_mode = torch.is_grad_enabled()
    METHODS[name].build(tiny_subject)(tiny_query)
    assert states(network) == before
    assert all(torch.equal(v, weights[k]) for k, v in network.state_dict().items())
    assert all(not p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(tiny_query.image, image)
    assert not tiny_query.image.requires_grad
    assert torch.is_grad_enabled() == grad_mode
    assert torch.equal(torch.get_rng_state(), torch_rng)
    assert np.array_equal(np.random.get_state()[1], numpy_rng)  # noqa: NPY002


@pytest.mark.parametrize("name", OTHERS)
def test_it_works_where_gradients_are_switched_off(
    name: str, tiny_subject: Subject, tiny_query: Query
) -> None:
    explain = METHODS[name].build(tiny_subject)
    expected = explain(tiny_query)
    with torch.no_grad():
        assert torch.equal(explain(tiny_query), expected)


NEEDS_MODULES = (
    "layer_deep_lift", "layer_deep_lift_shap", "layer_lrp", "guided_grad_cam", "guided_backprop",
    "deconvolution", "deep_lift", "deep_lift_shap", "lrp", "activation_decomposition",
    "activation_decomposition_self", "embedding_cam_mean", "embedding_cam_point",
    "similarity_grad_cam",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_on_a_network_of_functions_it_runs_or_says_why_not(name: str) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor) -> Tensor:
            x = self.conv(image)
            return (x * x.sigmoid()).softmax(1).amax((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Functional().requires_grad_(False)
    subject = Subject(Match(network), network.conv, budget=12)
    query = Query(torch.rand(1, 3, 20, 24), tuple(torch.rand(2, 1, 3, 4)))
    if name in NEEDS_MODULES or name.endswith("_block"):
        with pytest.raises(MethodUnavailableError, match=r".{20}"):
            METHODS[name].build(subject)
    else:
        assert torch.isfinite(METHODS[name].build(subject)(query)).all()
