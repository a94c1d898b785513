"""What a process that does parallel tasks sets of its own memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from manta.data.parallel import _keep_freed

if sys.argv[1] == "kept":
    _keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def use():
    block = libc.malloc(ctypes.c_size_t(40_000_000))
    ctypes.memset(block, 1, 40_000_000)
    libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_c_libraries_free_is_used_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True).stdout)
        for how in ("as it is", "kept")
    }
    # Memory had from the system anew is missed page by page, be they 4 KiB or 2 MiB.
    assert faults["kept"] <= faults["as it is"] / 5 < faults["as it is"]
