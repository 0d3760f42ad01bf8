import doctest
import importlib
import pkgutil

import pytest

import benchmarks.metrics

modules = [found.name for found in pkgutil.iter_modules(benchmarks.metrics.__path__)]


@pytest.mark.parametrize("name", modules)
def test_examples_run_as_written(name):
    module = importlib.import_module(f"benchmarks.metrics.{name}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
