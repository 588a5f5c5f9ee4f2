"""What the tests of this folder share."""

import pytest

from cases import TinyBackbone
from exported import as_trained


@pytest.fixture
def tiny():
    """A small custom module with a preprocessing for RGB images of 16 x 16."""
    return as_trained(TinyBackbone(), (3, 16, 16))
