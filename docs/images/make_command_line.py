"""Draws command_line.png: the page that ``captum-embed explain`` writes, as a browser shows it.

From the root of a checkout, where chromium is installed:
``.venv/bin/python docs/images/make_command_line.py``. The pictures are composites of scikit-image
photographs (the embedded data set); the network is EfficientNet-Lite0 with ImageNet weights.
"""

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.embedded import write_embedded
from captum_embed.command_line.main import main

HERE = Path(__file__).parent


def draw() -> None:
    """Write the picture beside this file."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = load_cub(write_embedded(folder / "embedded", images_per_class=3)).records
        cats = [record for record in records if record.class_name.endswith("Cat")]
        firsts = {record.class_name: record for record in reversed(records) if record not in cats}
        (folder / "others").mkdir()
        for record in list(firsts.values())[-5:]:
            shutil.copy(record.path, folder / "others")
        for name, record in zip(("query", "hit"), cats, strict=False):
            shutil.copy(record.path, folder / f"{name}.jpg")
        words = ["explain", str(folder / "query.jpg"), "--reference", str(folder / "hit.jpg")]
        words += ["--foil", str(folder / "others"), "--image-size", "320"]
        words += ["--network", "benchmarks.networks.build:imagenet_network"]
        assert main([*words, "--output", str(folder / "page")]) == 0
        page = folder / "page" / "index.html"
        page.write_text(page.read_text().replace(f"{folder}/", ""))
        picture = HERE / "command_line.png"
        browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
        window = ["--window-size=760,1005", f"--screenshot={picture}"]
        subprocess.run([*browser, *window, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    draw()
