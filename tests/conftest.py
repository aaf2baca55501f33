"""What every test may count on."""

import sys

import pytest


@pytest.fixture(autouse=True)
def subnormal_numbers_again():
    """The trainer flushes them to zero, for the whole process; other tests need them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
