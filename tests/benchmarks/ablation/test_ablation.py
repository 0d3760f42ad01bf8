"""The ablation on a network of random weights and a handful of embedded photographs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.ablation.ablate import AblateSettings, ablate, halves, summary
from benchmarks.ablation.activations import ActivationCache, Tail
from benchmarks.ablation.banks import mine_all_roles, transferred
from benchmarks.ablation.scoring import Fold
from benchmarks.ablation.variants import (
    BASE,
    BLOCK,
    FINAL,
    LAST,
    STRIDE_16,
    VARIANTS,
    BankVariant,
    of_axes,
)
from benchmarks.core.settings import ClassNames, ClassNumbers
from benchmarks.datasets import composition, embedded
from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.cut_outs import CLASSES
from benchmarks.datasets.embedded import write_embedded
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import load_rgb
from benchmarks.networks.build import EmbeddingNetwork, imagenet_network
from captum_embed import TripletForward, WeightBank, build_weight_bank
from captum_embed.errors import InputError
from captum_embed.recipes import LOCALIZE

FEW = tuple(
    v
    for v in VARIANTS
    if v in FINAL
    or v.key in ("layer and map: last block times stride 16", "views: and both")
    or v.key in ("loss: image in all roles", "neighbours: class means")
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six classes, at half the size."""
    folder = tmp_path_factory.mktemp("data") / "embedded"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "CLASSES", CLASSES[:6])
        patch.setattr(composition, "SIZES", ((250, 188), (188, 250)))
        return write_embedded(folder, images_per_class=3, progress=False)


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory):
    images = load_cub(root).select([1, 2, 3, 4])
    activations = ActivationCache(
        tmp_path_factory.mktemp("cache"), imagenet_network().requires_grad_(False), images.records
    )
    activations.fill(progress=False)
    return activations


def settings_for(root, output):
    return AblateSettings(
        data=str(root),
        output=output,
        train_classes=ClassNumbers((1, 2, 3, 4)),
        test_classes=ClassNames(("Handwriting", "Horse")),
        num_resamples=50,
        progress=False,
    )


def test_every_variant_has_a_name_of_its_own_and_the_recipes_are_among_them():
    keys = [variant.key for variant in VARIANTS]
    assert len(set(keys)) == len(keys)
    assert set(FINAL) <= set(VARIANTS)


@pytest.mark.parametrize("layer", [LAST, BLOCK, STRIDE_16])
def test_a_tail_continues_the_network_from_its_layer(cache, layer):
    image = to_tensor(load_rgb(cache.records[0]))[None]
    with torch.no_grad():
        expected = cache.network(image)
        actual = Tail(cache.network, BankVariant(layer))(cache.load(0)[f"plain/{layer}"])
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_norm_held_constant_changes_the_gradient_and_not_the_embedding(cache):
    activation = cache.load(0)[f"plain/{BLOCK}"].requires_grad_()
    embeddings, along = [], []
    for norm in ("differentiated", "constant"):
        embedding = Tail(cache.network, BankVariant(norm=norm))(activation)
        gradient = torch.autograd.grad((embedding * embedding.detach()).sum(), activation)[0]
        embeddings.append(embedding.detach())
        along.append(float(gradient.abs().sum()))
    torch.testing.assert_close(embeddings[0], embeddings[1])
    assert along[0] < 0.05 * along[1], "along itself a unit vector cannot grow"


def test_the_base_variant_is_the_library_s_recipe_for_boxes(cache):
    fold = Fold(cache, range(6, 12), range(3), [BASE], margin=0.2, seed=0)
    network = cache.network
    assert isinstance(network, EmbeddingNetwork)
    forward = TripletForward(network, margin=0.2)
    layer = network.recommended_layer
    dataset = [(to_tensor(load_rgb(r)), r.label) for r in cache.records[6:12]]
    bank = build_weight_bank(forward, layer, dataset, progress=False, **LOCALIZE.bank_settings)
    grad_cam = LOCALIZE.grad_cam(forward, layer, weight_bank=bank)
    for place in range(3):
        image = to_tensor(load_rgb(cache.records[place]))[None]
        expected = grad_cam.attribute(image)
        resized = nn.functional.interpolate(expected, image.shape[2:], mode="bilinear")[0, 0]
        actual = fold.heatmap(BASE, place, cache.load(place), image.shape[2:])
        np.testing.assert_allclose(
            actual / actual.max(), (resized / resized.max()).numpy(), atol=2e-3
        )


def test_all_roles_take_a_second_image_of_the_negative_s_class():
    embeddings = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    tuples = mine_all_roles(1, embeddings, labels, 5, torch.Generator().manual_seed(1))
    distance = (embeddings - embeddings[1]).square().sum(1)
    losses = distance[tuples[:, 0]] - distance[tuples[:, 1]]
    every = [float(distance[p] - distance[n]) for p in (0, 2) for n in range(3, 9)]
    assert sorted(losses.tolist(), reverse=True) == pytest.approx(sorted(every, reverse=True)[:5])
    assert (labels[tuples[:, 1]] == labels[tuples[:, 2]]).all()
    assert (tuples[:, 1] != tuples[:, 2]).all()


def test_transfer_by_hand():
    bank = WeightBank(
        torch.tensor([[0.0], [1.0], [5.0]]),
        torch.tensor([[1.0, -2.0], [-3.0, 4.0], [7.0, 8.0]]),
        labels=[0, 0, 1],
    )
    query = torch.tensor([[0.0]])
    near = replace(BASE, num_neighbors=2)
    assert transferred(near, bank, query).tolist() == [[2.0, 3.0]]
    signed = replace(near, entry_filter=None)
    assert transferred(signed, bank, query).tolist() == [[-1.0, 1.0]]
    means = replace(near, num_neighbors=1, class_mean=True)
    assert transferred(means, bank, query).tolist() == [[2.0, 3.0]]
    nearer = replace(near, nearer_counts_more=True)
    assert transferred(nearer, bank, query)[0].tolist() == pytest.approx([1.0, 2.0], abs=1e-4)
    assert transferred(replace(near, uniform=True), bank, query).tolist() == [[1.0, 1.0]]


def test_halves_cover_all_classes_and_share_none():
    first, second = halves(range(1, 12))
    assert first | second == set(range(1, 12))
    assert not first & second


def test_a_run_reports_every_variant_and_goes_on_where_it_stopped(root, tmp_path):
    path = ablate(settings_for(root, tmp_path / "run"), FEW)
    first = path.read_text()
    for name in ("ablation.md", "ablation.png", "ablation.svg"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert all(f"| {v.key}" in (tmp_path / "run" / "ablation.md").read_text() for v in FEW)
    records = tmp_path / "run" / "validation" / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    records.write_text("".join(lines[:5]))
    assert ablate(settings_for(root, tmp_path / "run"), FEW).read_text() == first


def test_axes_choose_what_is_varied_beside_the_recipes(root, tmp_path):
    chosen = of_axes(VARIANTS, ("direction",))
    assert chosen == [v for v in VARIANTS if v in FINAL or v.axis == "direction"]
    assert len(FINAL) < len(chosen) < len(VARIANTS)
    assert of_axes(VARIANTS, ()) == list(VARIANTS)
    with pytest.raises(InputError, match=r"colour is not varied.*tuples"):
        ablate(replace(settings_for(root, tmp_path), axes=("colour",)))


def test_summary_counts_boxes_right_by_hand():
    ious = {BASE: [6000, 4000, 5000, 0], FINAL[1]: [1000, 1000, 1000, 9000]}
    records = [
        {"iou": {variant.key: [values[i]] * 99 for variant, values in ious.items()}}
        for i in range(4)
    ]
    base, paper = summary(records, list(ious), seed=0, num_resamples=50)
    assert base["accuracy_at_0.2"][0] == 0.5
    assert paper["max_box_acc"][0] == 0.25
    assert paper["difference_at_0.2"][0] == -0.25


def test_too_few_classes_are_refused(root, tmp_path):
    settings = replace(settings_for(root, tmp_path), train_classes=ClassNumbers((1, 2, 3)))
    with pytest.raises(InputError, match="two classes each"):
        ablate(settings)


def test_another_network_is_refused(tmp_path):
    with pytest.raises(InputError, match="EfficientNet-Lite0"):
        ActivationCache(tmp_path, nn.Conv2d(3, 3, 1), [])
