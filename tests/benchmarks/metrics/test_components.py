import importlib.util
import shutil
import sys

import numba
import pytest

from benchmarks.metrics import components
from captum_embed.errors import MissingExtraError


def import_copy(folder):
    path = shutil.copy(components.__file__, folder / "copied.py")
    spec = importlib.util.spec_from_file_location("copied", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_module_imports_where_no_compiled_code_can_be_kept(tmp_path, monkeypatch):
    # A file in the place of each cache folder: stricter than permissions, which root ignores.
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    (tmp_path / "plain.py").write_text("def plain():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(importlib.import_module("plain").plain)
    assert import_copy(tmp_path).sweep_components


def test_missing_numba_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[benchmarks\]'"):
        import_copy(tmp_path)
