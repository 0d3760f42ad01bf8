"""Draws readme_overlay.png: the README's ten lines, as they are written there.

From the root of a checkout: ``.venv/bin/python docs/images/make_readme_overlay.py``. The
photographs are scikit-image's; the network is EfficientNet-Lite0 with its ImageNet weights.
"""

from pathlib import Path

from skimage import data

from benchmarks.networks.build import imagenet_network
from captum_embed import questions, recipes


def main() -> None:
    """Write the picture beside this file."""
    encoder = imagenet_network()  # any network from images to embeddings will do
    astronaut, rocket = data.astronaut(), data.rocket()
    recipe = recipes.EXPLAIN  # what does the match rest on?
    layer = recipe.layer_of(encoder)
    answer = questions.why_alike(encoder, astronaut, rocket, recipe=recipe, layer=layer)
    figure, _ = answer.draw()  # red makes them alike, blue sets them apart
    figure.savefig(Path(__file__).with_name("readme_overlay.png"), dpi=90)


if __name__ == "__main__":
    main()
