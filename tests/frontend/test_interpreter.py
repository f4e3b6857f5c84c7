"""The interpreter's settings do what they say."""

import subprocess
import sys

import pytest

from tests.processes import ENVIRONMENT

pytestmark = pytest.mark.processes

KEPT = """
import ctypes, sys
from frontend import interpreter

class Info(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", *"abcdefg")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "settled":
    interpreter.settle()
places = [libc.malloc(48) for _ in range(1000)]  # freed at the end: a large one joins all others
for place in places:
    libc.free(place)
print(libc.mallinfo2().smblks)
"""


GARBAGE = """
import gc
from frontend import interpreter

interpreter.start()
print(gc.isenabled(), end=" ")
interpreter.settle()
print(gc.isenabled(), gc.get_threshold()[0])
"""


def test_garbage_is_looked_for_once_all_is_settled() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GARBAGE], env=ENVIRONMENT, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.split() == [b"False", b"True", b"20000"]


def test_freed_memory_is_not_kept_in_small_pieces() -> None:
    """Those that are kept are joined all at once, when the loop frees something large."""

    def kept(how: str) -> int:
        command = [sys.executable, "-c", KEPT, how]
        return int(
            subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True).stdout
        )

    assert kept("as usual") > 500
    assert kept("settled") == 0
