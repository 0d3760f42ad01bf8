"""EmbeddingCAM against Grad-CAM by full autograd, loops, and a classifier's CAM."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_embed.errors import InputError, LayerError
from captum_embed.rivals import ActivationDecomposition, EmbeddingCAM, class_proxies


class Encoder(nn.Module):
    def __init__(self, pool=nn.AdaptiveAvgPool2d, bias=True, normalized=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU6())
        self.pool, self.head = pool(1), nn.Linear(5, 4, bias=bias)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.normalized = normalized
        self.double()

    def unnormalized(self, images):
        return self.head(self.pool(self.features(images)).flatten(1))

    def forward(self, images):
        embeddings = self.unnormalized(images)
        return nn.functional.normalize(embeddings, dim=1) if self.normalized else embeddings


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooling_of(pool):
    return "average" if pool is nn.AdaptiveAvgPool2d else "max"


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_is_grad_cam_of_the_unnormalized_dot_product_with_the_proxy(pool, bias, normalized):
    encoder = Encoder(pool, bias, normalized)
    images, proxy = normal(3, 3, 7, 9), normal(1, 4, seed=2)
    activation = encoder.features(images).detach().requires_grad_()
    embedding = encoder.head(encoder.pool(activation).flatten(1))
    (embedding @ nn.functional.normalize(proxy).T).sum().backward()
    weights = activation.grad.mean((2, 3), keepdim=True)
    expected = (weights * activation.detach()).sum(1, keepdim=True)
    cam = EmbeddingCAM(encoder, encoder.features, encoder.head, pooling_of(pool))
    torch.testing.assert_close(cam.attribute(images, proxy), expected)


def test_equals_loops_over_channels_and_embedding_dimensions():
    encoder = Encoder()
    image, proxies = normal(1, 3, 6, 7), normal(1, 3, 4, seed=2)
    mean = proxies[0].numpy().mean(0)
    proxy = mean / np.sqrt((mean**2).sum())
    activation = encoder.features(image)[0].detach().numpy()
    weight = encoder.head.weight.detach().numpy()
    expected = np.zeros(activation.shape[1:])
    for d, c, y, x in np.ndindex(*weight.shape, *expected.shape):
        expected[y, x] += proxy[d] * weight[d, c] * activation[c, y, x] / expected.size
    cam = EmbeddingCAM(encoder, encoder.features, encoder.head)
    np.testing.assert_allclose(cam.attribute(image, proxies)[0, 0], expected)


def test_sums_to_the_dot_product_less_the_bias():
    encoder = Encoder()
    images, proxies = normal(3, 3, 7, 9), normal(3, 4, seed=2)
    unit = nn.functional.normalize(proxies, dim=1)
    expected = ((encoder.unnormalized(images) - encoder.head.bias) * unit).sum(1)
    map_ = EmbeddingCAM(encoder, encoder.features, encoder.head).attribute(images, proxies)
    torch.testing.assert_close(map_.sum((1, 2, 3)), expected.detach())


def test_one_hot_proxy_gives_the_classifiers_grad_cam():
    classifier = Encoder(normalized=False)
    images = normal(3, 3, 7, 9)
    for target in range(4):
        expected = LayerGradCam(classifier, classifier.features).attribute(images, target)
        one_hot = torch.eye(4).double()[target : target + 1]
        cam = EmbeddingCAM(classifier, classifier.features, classifier.head)
        torch.testing.assert_close(cam.attribute(images, one_hot), expected.detach())


def test_mean_proxy_is_the_normalized_mean_and_a_ready_one_gives_the_same():
    encoder = Encoder()
    images, members = normal(2, 3, 7, 9), normal(6, 4, seed=2)
    cam = EmbeddingCAM(encoder, encoder.features, encoder.head)
    _, proxies = class_proxies(members, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(cam.attribute(images, members[None]), cam.attribute(images, proxies))


def test_without_a_proxy_the_images_own_embedding_is_the_point():
    encoder = Encoder()
    images = normal(2, 3, 7, 9)
    cam = EmbeddingCAM(encoder, encoder.features, encoder.head)
    torch.testing.assert_close(cam.attribute(images), cam.attribute(images, encoder(images)))


def test_is_the_activation_decomposition_for_average_pooling_but_not_for_max():
    images, proxy = normal(2, 3, 7, 9), normal(1, 4, seed=2)
    for pool in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        encoder = Encoder(pool)
        arguments = encoder, encoder.features, encoder.head, pooling_of(pool)
        decomposition = ActivationDecomposition(*arguments, similarity="dot")
        ours = EmbeddingCAM(*arguments).attribute(images, proxy)
        theirs = decomposition.attribute(images, nn.functional.normalize(proxy))
        assert torch.allclose(ours, theirs) == (pool is nn.AdaptiveAvgPool2d)


def test_network_without_a_head_projects_the_proxy_as_it_is():
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    images, proxy = normal(2, 3, 7, 9), normal(1, 5, seed=2)
    unit = nn.functional.normalize(proxy)[..., None, None]
    expected = (encoder[0](images) * unit).sum(1, keepdim=True) / 35
    actual = EmbeddingCAM(encoder, encoder[0]).attribute(images, proxy)
    torch.testing.assert_close(actual, expected.detach())


def test_relu_attributions_sets_negative_values_to_zero():
    encoder = Encoder()
    images, proxy = normal(2, 3, 7, 9), normal(1, 4, seed=2)
    cam = EmbeddingCAM(encoder, encoder.features, encoder.head)
    raw = cam.attribute(images, proxy)
    assert raw.min() < 0 < raw.max()
    torch.testing.assert_close(
        cam.attribute(images, proxy, relu_attributions=True), raw.clamp(min=0)
    )


def test_class_proxies_are_normalized_means_by_class():
    embeddings, labels = normal(20, 4), torch.tensor([5, 2, 2, 9] * 5)
    classes, proxies = class_proxies(embeddings, labels)
    assert classes.tolist() == [2, 5, 9]
    for label, proxy in zip(classes, proxies, strict=True):
        mean = embeddings[labels == label].mean(0)
        torch.testing.assert_close(proxy, mean / mean.norm())


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [((4,), (4,)), ((4, 2), (3,)), ((4, 2), (4, 1)), ((0, 2), (0,))],
)
def test_class_proxies_refuse_shapes_that_do_not_fit(embeddings, labels):
    with pytest.raises(InputError, match=r"expected \(M, D\) and \(M,\)"):
        class_proxies(torch.ones(embeddings), torch.ones(labels, dtype=torch.long))


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        (normal(4), r"the proxy is \(4,\)"),
        (normal(2, 5), "the proxy has shape.*same width"),
        (normal(3, 4), "the proxy holds 3 rows for 2 images"),
        (normal(2, 3, 7, 9), "expected embeddings"),
        ([0.0], "the proxy is list"),
    ],
)
def test_refuses_a_proxy_that_does_not_fit(proxy, message):
    encoder = Encoder()
    cam = EmbeddingCAM(encoder, encoder.features, encoder.head)
    with pytest.raises(InputError, match=message):
        cam.attribute(normal(2, 3, 7, 9), proxy)
    with pytest.raises(InputError, match="2 rows for 3 images"):
        cam.attribute(normal(3, 3, 7, 9), normal(2, 4))


def test_refuses_a_network_whose_embedding_is_not_linear():
    encoder = Encoder()
    cam = EmbeddingCAM(nn.Sequential(encoder, nn.Softplus()), encoder.features, encoder.head)
    with pytest.raises(LayerError, match="does not hold"):
        cam.attribute(normal(2, 3, 7, 9))
