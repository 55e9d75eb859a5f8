import random

import pytest
import torch

from glue_cli.foundation.seeds import derive_seed, generator, seeded


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed(0, "share", 3) == 6805382904563933457
    assert derive_seed(2**63 - 1, "probe", 10) == 8128748606386053379


def test_every_purpose_has_a_seed_of_its_own():
    seeds = [
        derive_seed(seed, *purpose) for seed in range(3) for purpose in [(), ("a",), ("a", 1), ("a", 11), ("b", 1)]
    ]
    assert len(set(seeds)) == len(seeds)
    draws = [torch.rand(1, generator=generator(0, "probe", step)).item() for step in range(20)]
    assert len(set(draws)) == 20
    assert torch.rand(1, generator=generator(0, "probe", 7)).item() == draws[7]


def test_all_generators_are_seeded_and_go_on_as_before():
    numpy = pytest.importorskip("numpy")
    cpu = torch.device("cpu")

    def draws():
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    with seeded(3, cpu):
        first = draws()
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    wanted = draws()
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    with seeded(3, cpu):
        assert draws() == first
    assert draws() == wanted
