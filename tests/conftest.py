import os
from pathlib import Path

import pytest
from hypothesis import settings

# Times differ from machine to machine, and with what else it does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Real images and the trained checkpoint, which are never part of the repository."""
    root = Path(
        os.environ.get("CAPTUM_EMBED_SHARED", Path(__file__).resolve().parents[1].parent / "shared")
    )
    if not (root / "cub").is_dir():
        pytest.skip(f"no real data: {root / 'cub'} is absent (set CAPTUM_EMBED_SHARED)")
    return root
