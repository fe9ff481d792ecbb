"""Memory of large answers is returned to the system."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.full

# Freeing the first buffer makes glibc allocate later ones on its heap, which cannot shrink below data in use.
FLOOD = """
import os
from pathlib import Path
from gatewayadmin.serving.server import return_large_buffers

def taken():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

return_large_buffers()
bytearray(b"x") * 8_000_000
buffers, others = [], []
for _ in range(20):
    buffers.append(bytearray(b"x") * 4_000_000)
    others.append(bytearray(b"x") * 100_000)
before = taken()
buffers.clear()
print(before - taken())
"""


def test_freed_buffers_of_large_answers_go_back_to_the_system() -> None:
    given_back = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, check=True).stdout

    assert int(given_back) >= 75_000_000
