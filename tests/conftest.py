import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Real images and the trained checkpoint, which are never part of the repository."""
    root = Path(
        os.environ.get("CAPTUM_EMBED_SHARED", Path(__file__).resolve().parents[1].parent / "shared")
    )
    if not (root / "cub").is_dir():
        pytest.skip(f"no real data: {root / 'cub'} is absent (set CAPTUM_EMBED_SHARED)")
    return root
