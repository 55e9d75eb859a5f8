import resource
from pathlib import Path

import pytest
import torch

from glue_cli.core import memory
from glue_cli.core.memory import free_memory

CPU = torch.device("cpu")
MiB = 1 << 20


@pytest.fixture
def address_space():
    """Limit the address space as `ulimit -v` does, to so much more than is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)

    def limit(more):
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + more, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Pretend to live in a control group with these files."""

    def group(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return group


def test_memory_of_this_machine(group):
    total = 1024 * int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert 0 < free_memory(CPU) < total


def test_a_limit_on_the_address_space_counts(address_space, group):
    address_space(200 * MiB)
    assert 190 * MiB < free_memory(CPU) <= 200 * MiB
    torch.empty(150 * MiB, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="alloc"):
        torch.empty(250 * MiB, dtype=torch.uint8)


def test_a_limit_that_is_passed_leaves_nothing(group):
    group(memory_max=f"{MiB}\n", memory_current=f"{2 * MiB}\n", memory_stat="inactive_file 0\n")
    assert free_memory(CPU) == 0


def test_a_limit_on_the_control_group_counts(group):
    stat = f"anon {5 * MiB}\nfile {40 * MiB}\ninactive_file {3 * MiB}\nactive_file {37 * MiB}\n"
    group(memory_max=f"{64 * MiB}\n", memory_current=f"{50 * MiB}\n", memory_stat=stat)
    assert free_memory(CPU) == (64 - 50 + 3) * MiB


@pytest.mark.parametrize(
    "wrong", [{"memory_max": "max\n"}, {"memory_current": "nonsense"}, {"memory_stat": "a b c\n"}]
)
def test_without_a_limit_or_a_readable_one_the_machine_decides(group, wrong):
    group(**{"memory_max": f"{MiB}\n", "memory_current": "0\n", "memory_stat": "inactive_file 0\n"} | wrong)
    assert free_memory(CPU) > MiB


@pytest.mark.cuda
def test_memory_of_a_gpu(cuda):
    before = free_memory(cuda)
    assert 0 < before <= torch.cuda.get_device_properties(cuda).total_memory
    taken = torch.empty(256 * MiB, dtype=torch.uint8, device=cuda)
    assert free_memory(cuda) <= before - taken.numel()
