"""Draws the pictures of docs/how_to/questions.md, by running the page's code as it is written.

From the root of a checkout: ``.venv/bin/python docs/images/make_questions.py``. The pictures are
of scikit-image photographs; the network is EfficientNet-Lite0 with its ImageNet weights.
"""

import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "how_to" / "questions.md"


def main() -> None:
    """Write the pictures beside this file."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "questions"})
        for picture in Path().glob("*.png"):
            shutil.copy(picture, FOLDER / picture.name)
        os.chdir(FOLDER)


if __name__ == "__main__":
    main()
