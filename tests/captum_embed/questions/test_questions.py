"""The answers are known by construction: an encoder whose channels are the image's colours."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_embed import (
    EmbeddingLayerGradCam,
    SimilarityForward,
    TripletForward,
    WeightBank,
    build_weight_bank,
    questions,
    recipes,
)
from captum_embed.errors import BankMismatchError, InputError, LayerError

# Grad-CAM alone: the recipe's map is then a weighted sum that can be computed by hand.
PLAIN = recipes.Recipe(name="plain", question="")
LEFT, RIGHT = (slice(None), slice(None), slice(None), slice(0, 2)), (..., slice(2, 4))


class Colours(nn.Module):
    """Embeds an image (3, H, W) by its mean red, green and blue."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight = nn.Parameter(torch.eye(3)[:, :, None, None])

    def forward(self, images):
        return self.features(images).mean((2, 3))


def halves(left, right):
    """An image (3, 4, 4): a colour on its left, another on its right."""
    image = torch.empty(3, 4, 4)
    image[:, :, :2] = torch.tensor(left)[:, None, None]
    image[:, :, 2:] = torch.tensor(right)[:, None, None]
    return image


RED, GREEN, BLUE, BLACK = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)


@pytest.fixture
def encoder():
    return Colours().eval()


def test_what_two_have_in_common_is_above_zero_and_the_rest_below(encoder):
    answer = questions.why_alike(encoder, halves(RED, GREEN), halves(BLUE, RED), recipe=PLAIN)
    first, second = answer.maps
    assert (first[LEFT] > 0).all()
    assert (first[RIGHT] < 0).all()
    assert (second[LEFT] < 0).all()
    assert (second[RIGHT] > 0).all()
    assert answer.scores == pytest.approx((0.5, 0.5))


def test_the_map_is_the_one_computed_by_hand(encoder):
    # e = (1/2, 1/2, 0), r = (0, 0, 1) + (1, 0, 0) halved: cos = 1/2.
    # d cos / d e = (r_hat - cos e_hat) / |e|, and each place has 1/16 of a channel's mean.
    answer = questions.why_alike(encoder, halves(RED, GREEN), halves(BLUE, RED), recipe=PLAIN)
    e = np.array([0.5, 0.5, 0.0])
    r = np.array([0.5, 0.0, 0.5])
    e_hat, r_hat = e / np.linalg.norm(e), r / np.linalg.norm(r)
    gradient = (r_hat - (e_hat @ r_hat) * e_hat) / np.linalg.norm(e) / 16
    expected = np.empty((4, 4))
    expected[:, :2], expected[:, 2:] = gradient[0], gradient[1]
    np.testing.assert_allclose(answer.maps[0][0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("recipe", [PLAIN, recipes.EXPLAIN])
def test_maps_are_those_of_the_attribution_itself(encoder, recipe):
    query, hit, foil = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    answer = questions.why_alike(encoder, query, hit, [foil], recipe=recipe)
    forward = SimilarityForward(encoder, hit[None], foil[None])
    attribution = EmbeddingLayerGradCam(
        forward, encoder.features, channel_filter=recipe.channel_filter, map_func=recipe.map_func
    )
    torch.testing.assert_close(answer.maps[0], attribution.attribute(query[None]))
    assert answer.scores[0] == pytest.approx(forward(query[None]).item())


def test_why_not_is_the_same_map_and_its_answer_lies_below_zero(encoder):
    pair = halves(RED, GREEN), halves(RED, RED)
    alike = questions.why_alike(encoder, *pair, recipe=PLAIN)
    against = questions.why_not(encoder, *pair, recipe=PLAIN)
    torch.testing.assert_close(alike.maps, against.maps)
    assert against.sign == "negative"
    assert (against.maps[0][RIGHT] < 0).all()


def test_why_before_explains_one_score_on_all_three(encoder):
    query, hit, other = halves(RED, GREEN), halves(RED, BLACK), halves(GREEN, BLUE)
    answer = questions.why_before(encoder, query, hit, other, recipe=PLAIN)
    of_query, _of_hit, of_other = answer.maps
    assert (of_query[LEFT] > 0).all()
    assert (of_query[RIGHT] < 0).all()
    # Green likens the other to the query, which speaks against the hit; blue does not.
    assert (of_other[LEFT] < 0).all()
    assert (of_other[RIGHT] > 0).all()
    assert answer.score == pytest.approx(2**-0.5 - 0.5)
    assert len(set(answer.scores)) == 1


def test_a_small_step_along_the_map_raises_the_score(encoder):
    # What "above zero raises the score" means, on each of the three pictures.
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    answer = questions.why_before(encoder, *images, recipe=PLAIN)
    for place, one_map in enumerate(answer.maps):
        changed = images.clone()
        # Brighter where the map is above zero: each place's own colours grow.
        changed[place] *= 1 + 1e-2 * one_map[0].sign()
        assert questions.why_before(encoder, *changed, recipe=PLAIN).score > answer.score


def test_a_class_is_what_its_pictures_share_and_others_lack(encoder):
    images = [halves(RED, GREEN), halves(RED, BLUE), halves(RED, BLACK)]
    answer = questions.class_look(encoder, images, others=[halves(GREEN, BLUE)], recipe=PLAIN)
    for one_map in answer.maps[:2]:
        assert (one_map[LEFT] > 0).all()
        assert (one_map[RIGHT] < 0).all()
    assert max(answer.scores) == answer.scores[2]


def test_a_picture_is_not_compared_with_itself(encoder):
    images = [halves(RED, RED), halves(GREEN, GREEN)]
    assert questions.class_look(encoder, images, recipe=PLAIN).scores == pytest.approx((0.0, 0.0))


def test_neighbors_are_the_nearest_and_the_map_is_the_banks(encoder):
    pairs = [(RED, BLACK), (RED, RED), (GREEN, BLUE), (BLUE, BLUE)]
    images = torch.stack([halves(*pair) for pair in pairs])
    labels = [0, 0, 1, 1]
    forward = TripletForward(encoder)
    bank = build_weight_bank(
        forward, encoder.features, list(zip(images, labels, strict=True)), progress=False
    )
    query = halves(RED, GREEN)
    answer = questions.whose_weights(
        encoder, query, bank, images, num_neighbors=2, recipe=recipes.PAPER
    )
    with torch.no_grad():
        distances = torch.cdist(encoder(query[None]), encoder(images)).sort()
    torch.testing.assert_close(answer.neighbors.distances, distances.values[:, :2])
    assert answer.neighbors.indices.tolist() == distances.indices[:, :2].tolist()
    attribution = recipes.PAPER.grad_cam(forward, encoder.features, weight_bank=bank)
    expected = attribution.attribute(query[None], num_neighbors=2)
    torch.testing.assert_close(answer.map, expected)
    excluding = questions.whose_weights(encoder, query, bank, exclude=[0], recipe=recipes.PAPER)
    assert excluding.neighbors.labels.tolist() == [[1]]


def test_a_bank_of_the_loss_is_refused(encoder):
    bank = WeightBank(torch.eye(3), torch.eye(3), metadata={"explains": "loss"})
    with pytest.raises(BankMismatchError, match="loss"):
        questions.whose_weights(encoder, halves(RED, RED), bank)


@pytest.mark.parametrize("kind", ["pil", "uint8", "float", "batch"])
def test_pictures_of_all_kinds_are_the_same_picture(encoder, kind):
    eight_bits = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    scaled = torch.from_numpy(eight_bits / 255).float().permute(2, 0, 1)
    given = {
        "pil": Image.fromarray(eight_bits),
        "uint8": eight_bits,
        "float": eight_bits / 255,
        "batch": scaled[None],
    }[kind]
    second = torch.rand(3, 4, 4)

    def preprocess(image):
        assert image.mode == "RGB"
        return torch.from_numpy(np.asarray(image) / 255).float().permute(2, 0, 1)

    answer = questions.why_alike(encoder, given, second, preprocess=preprocess)
    expected = questions.why_alike(encoder, scaled, second)
    torch.testing.assert_close(answer.maps, expected.maps)
    assert answer.images[0].shape == (1, 3, 6, 5)


def test_the_default_preprocess_is_torchvisions(encoder):
    from torchvision.transforms import v2

    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    )
    expected = v2.Compose(
        [
            v2.Resize(448, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(image)
    torch.testing.assert_close(questions.default_preprocess(image), expected)
    small = image.resize((40, 30))
    assert questions.default_preprocess(small).shape == (3, 30, 40)


def test_pictures_come_in_the_encoders_precision(encoder):
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    other = Image.new("RGB", (4, 4), (0, 255, 0))
    answer = questions.why_alike(encoder.double(), image, other)
    assert answer.images[0].dtype == answer.maps[0].dtype == torch.float64


def test_normalisation_is_undone_for_drawing(encoder):
    from torchvision.transforms import v2

    image = Image.new("RGB", (8, 8), (255, 0, 0))
    steps = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    other = Image.new("RGB", (8, 8), (0, 255, 0))
    assert questions.why_alike(encoder, image, other, preprocess=steps).normalization == (
        [0.5] * 3,
        [0.25] * 3,
    )
    _figure, axes = questions.why_alike(encoder, image, other).draw()
    grey = axes[0, 0].images[0].get_array()
    np.testing.assert_allclose(grey, 0.25 + 0.75 * 0.299, atol=1e-5)
    normalised = questions.why_alike(encoder, *(5 * torch.randn(2, 3, 8, 8)))
    with pytest.raises(InputError, match="pass normalization"):
        normalised.draw()
    normalised.draw(normalization=lambda tensor: tensor.sigmoid())


def test_the_borrowed_map_is_drawn_beside_its_neighbors(encoder):
    bank = WeightBank(torch.eye(3), torch.eye(3), labels=[0, 1, 2], keys=["r", "g$b", "b"])
    pictures = {key: torch.rand(3, 4, 4) for key in bank.keys}
    answer = questions.whose_weights(encoder, halves(GREEN, RED), bank, pictures)
    _figure, axes = answer.draw(shown=2)
    assert [axis.get_title().splitlines()[0] for axis in axes[0]] == ["query", "r", "g$b"]
    with pytest.raises(InputError, match="pictures"):
        questions.whose_weights(encoder, halves(GREEN, RED), bank).draw()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.rand(2, 3, 4, 4), r"\(2, 3, 4, 4\).*one image"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
        (np.zeros((2, 4, 4, 3)), "one image"),
    ],
)
def test_what_is_no_picture_is_refused(encoder, picture, message):
    with pytest.raises(InputError, match=message):
        questions.why_alike(encoder, picture, torch.rand(3, 4, 4))


def test_bad_settings_are_refused(encoder):
    image = torch.rand(3, 4, 4)
    with pytest.raises(TypeError, match="layr"):
        questions.why_alike(encoder, image, image, layr=encoder.features)
    with pytest.raises(InputError, match="two or more"):
        questions.class_look(encoder, [image])
    with pytest.raises(InputError, match="names"):
        questions.class_look(encoder, [image, image], names=["one"])
    with pytest.raises(InputError, match="module"):
        questions.why_alike(lambda images: images, image, image)
    training = nn.Sequential(encoder, nn.BatchNorm1d(3))
    with pytest.raises(LayerError, match="training mode"):
        questions.why_alike(training, image, image, layer=encoder.features)


def test_nothing_is_left_behind(encoder):
    encoder.features.weight.requires_grad_(True)
    image = torch.rand(3, 4, 4)
    state = torch.random.get_rng_state()
    questions.why_before(encoder, image, image, image)
    assert encoder.features.weight.grad is None
    assert not encoder.features._forward_hooks
    assert torch.equal(state, torch.random.get_rng_state())


def test_layers_with_tokens_are_explained():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(3, 3, bias=False)

        def forward(self, images):
            return self.block(images.flatten(2).transpose(1, 2)).mean(1)

    encoder = Tokens().eval()
    encoder.block.weight = nn.Parameter(torch.eye(3))
    pair = halves(RED, GREEN), halves(BLUE, RED)
    settings = {"recipe": PLAIN, "layer": encoder.block, "layout": "tokens"}
    answer = questions.why_alike(encoder, *pair, **settings)
    expected = questions.why_alike(Colours().eval(), *pair, recipe=PLAIN)
    torch.testing.assert_close(answer.maps, expected.maps)


@pytest.mark.parametrize("ask", [questions.why_alike, questions.why_not])
def test_two_equal_pictures_are_refused_unless_there_is_something_to_compare_with(encoder, ask):
    both, other = halves(RED, GREEN), halves(BLUE, RED)
    for second, distance in ((2 * both, "cosine"), (both, "squared_euclidean")):
        with pytest.raises(InputError, match=r"the same to the network.*pass foils="):
            ask(encoder, both, second, distance=distance)
    assert ask(encoder, both, both, foils=[other], recipe=PLAIN).maps[0].abs().max() > 0
    longer = ask(encoder, both, 2 * both, distance="squared_euclidean", recipe=PLAIN)
    assert longer.maps[0].abs().max() > 0
