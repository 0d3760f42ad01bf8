"""The rivals on a trained network and real photographs: what must hold, holds there."""

import pytest
import torch

from captum_embed.rivals import (
    ActivationDecomposition,
    EigenCAM,
    EmbeddingCAM,
    EmbeddingLayerCAM,
    SimilarityGradCam,
)


@pytest.fixture(scope="module")
def network(shared_root):
    pytest.importorskip("efficientnet_lite_pytorch")
    from benchmarks.networks.build import load_checkpoint

    return load_checkpoint(shared_root / "cub" / "efficientnet_lite0_triplet.safetensors")


@pytest.fixture(scope="module")
def photographs(shared_root):
    import numpy as np
    from PIL import Image

    folders = sorted((shared_root / "cub" / "CUB_200_2011" / "images").iterdir())
    batches = []
    for folder, size in zip(folders[:2], [(320, 256), (256, 288)], strict=True):
        with Image.open(min(folder.iterdir())) as image:
            pixels = np.asarray(image.convert("RGB").resize(size), dtype=np.float32) / 255
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        batches.append((tensor - mean[:, None, None]) / deviation[:, None, None])
    return tuple(batches)


def test_decomposition_sums_to_the_cosine(network, photographs):
    maps = ActivationDecomposition(network, network.features, network.head).attribute(photographs)
    with torch.no_grad():
        cosine = (network(photographs[0]) * network(photographs[1])).sum()
    assert [tuple(one.shape) for one in maps] == [(1, 1, 8, 10), (1, 1, 9, 8)]
    for one in maps:
        torch.testing.assert_close(one.sum(), cosine, atol=1e-5, rtol=1e-4)


def test_rivals_that_coincide_after_average_pooling_do(network, photographs):
    first, second = photographs
    with torch.no_grad():
        reference = network(second)
    ours = (
        ActivationDecomposition(network, network.features, network.head, similarity="dot"),
        SimilarityGradCam(network, network.features, network.head),
        EmbeddingCAM(network, network.features, network.head),
    )
    maps = [one.attribute(first, reference) for one in ours]
    assert maps[0].abs().max() > 0
    for one in maps[1:]:
        torch.testing.assert_close(one, maps[0], atol=1e-5, rtol=1e-3)


def test_eigen_cam_and_layer_cam_of_rectified_features_are_not_negative(network, photographs):
    first, _ = photographs
    eigen = EigenCAM(network, network.features).attribute(first)
    layer = EmbeddingLayerCAM(lambda x: network(x)[:, :8].sum(1), network.features)
    for map_ in (eigen, layer.attribute(first)):
        assert map_.shape == (1, 1, 8, 10)
        assert map_.min() > -1e-4 * map_.max()
        assert map_.max() > 0
