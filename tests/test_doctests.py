"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import gpupipe


def rooms() -> Iterator[str]:
    """Every module of gpupipe but those that run something when they are imported."""
    for found in pkgutil.walk_packages(gpupipe.__path__, "gpupipe."):
        if not found.name.endswith("__main__"):
            yield found.name


@pytest.mark.parametrize("room", list(rooms()))
def test_examples(room: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(room), report=True)
    assert failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        example for room in rooms() for test in finder.find(importlib.import_module(room)) for example in test.examples
    ]
    assert len(found) >= 20
