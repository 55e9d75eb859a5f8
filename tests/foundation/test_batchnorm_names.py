import pytest
from torch import nn

from glue_cli.foundation.batchnorm_names import COUNTER, STATISTICS, is_statistic, is_variance


def test_they_are_what_torch_calls_them():
    parameters, state = dict(nn.BatchNorm2d(3).named_parameters()), nn.BatchNorm2d(3).state_dict()
    assert list(STATISTICS) == [name for name in state if name not in parameters]
    assert not state[COUNTER].is_floating_point()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("running_mean", True),
        ("stem.bn.running_var", True),
        ("0.num_batches_tracked", True),
        ("bn.weight", False),
        ("running_mean.weight", False),
        ("my_running_var", False),
    ],
)
def test_statistics_by_their_names(name, wanted):
    assert is_statistic(name) is wanted
    assert is_variance(name) is (name == "stem.bn.running_var")
