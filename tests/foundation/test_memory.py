import ctypes
import gc
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glue_cli.foundation import memory
from glue_cli.foundation.memory import free_memory, give_back_freed, is_out_of_memory

CPU = torch.device("cpu")
MiB = 1 << 20


@pytest.fixture(params=["address space", "data"])
def limited(request):
    """Limit what this process may take as `ulimit -v` or `ulimit -d` does, to so much more than is in use."""
    kind, field = {"address space": (resource.RLIMIT_AS, 0), "data": (resource.RLIMIT_DATA, 5)}[request.param]
    before = resource.getrlimit(kind)

    def limit(more):
        gc.collect()
        in_use = int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
        resource.setrlimit(kind, (in_use + more, before[1]))

    yield limit
    resource.setrlimit(kind, before)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Pretend to live in a control group with these files, below others or not."""

    def group(folder=".", **files):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / name.replace("_", ".", 1)).write_text(text)

    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/\n")
    return group


def test_memory_of_this_machine(group):
    total = 1024 * int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert 0 < free_memory(CPU) < total


def test_a_limit_of_the_process_counts(limited, group):
    limited(200 * MiB)
    assert 190 * MiB < free_memory(CPU) <= 200 * MiB
    torch.empty(150 * MiB, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="alloc"):
        torch.empty(4096 * MiB, dtype=torch.uint8)  # far beyond: what other tests leave may be given back meanwhile


def test_a_limit_that_is_passed_leaves_nothing(group):
    group(memory_max=f"{MiB}\n", memory_current=f"{2 * MiB}\n", memory_stat="inactive_file 0\n")
    assert free_memory(CPU) == 0


def test_a_limit_on_the_control_group_counts(group):
    stat = f"anon {5 * MiB}\nfile {40 * MiB}\ninactive_file {3 * MiB}\nactive_file {37 * MiB}\n"
    group(memory_max=f"{64 * MiB}\n", memory_current=f"{50 * MiB}\n", memory_stat=stat)
    assert free_memory(CPU) == (64 - 50 + 3) * MiB


def limit(n_mib):
    return {"memory_max": f"{n_mib * MiB}\n", "memory_current": f"{MiB}\n", "memory_stat": "inactive_file 0\n"}


@pytest.mark.parametrize(("step", "job", "wanted"), [(8, 32, 7), (32, 8, 7), (None, 8, 7)])
def test_a_batch_job_has_the_least_of_the_limits_above_it(group, tmp_path, step, job, wanted):
    (tmp_path / "membership").write_text("1:cpu,cpuacct:/elsewhere\n0::/slurm/job_7/step_0\n")
    group("slurm/job_7", **limit(job))
    group("slurm/job_7/step_0", **({} if step is None else limit(step)))
    group("elsewhere", **limit(2))
    assert free_memory(CPU) == wanted * MiB


def test_limits_of_the_first_version_count(group, tmp_path):
    (tmp_path / "membership").write_text("5:cpuset:/\n4:memory:/slurm/job_7\n0::/\n")
    group(
        "memory/slurm/job_7",
        memory_limit_in_bytes=f"{16 * MiB}\n",
        memory_usage_in_bytes=f"{12 * MiB}\n",
        memory_stat=f"inactive_file 0\ntotal_inactive_file {MiB}\n",
    )
    group("memory", memory_limit_in_bytes="9223372036854771712\n", memory_usage_in_bytes="0\n", memory_stat="")
    assert free_memory(CPU) == 5 * MiB


def test_a_group_that_is_out_of_sight_is_none(group, tmp_path):
    (tmp_path / "membership").write_text("0::/../../of/the/host\n")
    group(**limit(8))
    assert free_memory(CPU) == 7 * MiB


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


@pytest.mark.parametrize("n_bytes", [1 << 45, 1 << 60])
def test_what_torch_itself_raises_for_want_of_memory(n_bytes):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(n_bytes, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_want_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the buffer is not allocated yet"),
        RuntimeError("a page that says: out of memory"),
        RuntimeError("it cannot go on: CUDA error: out of memory is what it would say"),
        RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
        ValueError("std::bad_alloc"),
        KeyError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError(),
    ],
)
def test_a_bug_that_speaks_of_memory_is_a_bug(error):
    assert not is_out_of_memory(error)


def test_telling_want_of_memory_needs_no_torch():
    code = (
        "import sys; from glue_cli.foundation.memory import is_out_of_memory as told;"
        "assert told(MemoryError()) and not told(RuntimeError('x')) and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library keeps what is freed")
def test_freed_memory_between_kept_blocks_goes_back_to_the_system():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    blocks = [b"x" * 65_536 for _ in range(1600)]
    kept = blocks[::16]
    del blocks
    before = resident()
    give_back_freed()
    assert before - resident() > 1000 * 65_536
    assert kept[-1] == b"x" * 65_536


def test_a_c_library_that_cannot_give_memory_back_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    give_back_freed()


N_ARENAS = """
import ctypes
import sys
import threading

from glue_cli.foundation.memory import share_arena

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
if sys.argv[1] == "shared":
    share_arena()
threads = [threading.Thread(target=lambda: library.free(ctypes.c_void_p(library.malloc(9)))) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stdout = ctypes.c_void_p.in_dll(library, "stdout")
library.malloc_info(0, stdout)
library.fflush(stdout)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_threads_allocate_where_the_first_one_does():
    n_arenas = {}
    for how in ("apart", "shared"):
        command = [sys.executable, "-c", N_ARENAS, how]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        n_arenas[how] = said.count("<heap nr=")
    assert n_arenas["apart"] > 1 == n_arenas["shared"]
