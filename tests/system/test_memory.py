"""The process's own memory is counted; freed memory is kept within the block and given back after it."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from sottovoce.system.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1])
with keep_freed_memory():
    with keep_freed_memory():
        faults()
    inside = faults()
    big = [torch.ones(1_000_000) for _ in range(100)]
    del big
    full = resident()
print(inside, resident() < full - 50_000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_memory_is_kept_inside_and_returned_after() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    inside, returned = done.stdout.split()
    assert int(inside) < 100  # 20 x 16 MB in pages of 4 kB would be 78,000
    assert returned == "True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="from /proc")
def test_peak_memory_is_the_processs_own_and_not_its_parents() -> None:
    ask = "from sottovoce.system.memory import *; before = memory_bytes(); big = bytearray(100_000_000); "
    ask += "print(peak_memory_bytes(), memory_bytes() - before)"
    parent = "import subprocess, sys; big = bytearray(500_000_000); subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    done = subprocess.run([sys.executable, "-c", parent, ask], capture_output=True, text=True, check=True)
    peak, more = map(int, done.stdout.split())
    assert 100_000_000 < peak < 400_000_000  # the parent has 500
    assert 90_000_000 < more < peak
