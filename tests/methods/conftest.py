import pytest
from fake_objective import Bowl


@pytest.fixture
def quadratic():
    """A target loss without any model: |alpha - target|^2, the same on every minibatch."""
    return Bowl
