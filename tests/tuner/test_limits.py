from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
from tuner.limits import limit_files, limit_memory
limit_files(0.001, 64)
limit_files(1.0, 1000)
limit_memory(0.25)
print(*(resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)))
try:
    open(sys.argv[1], "wb").write(bytes(2**21))
except OSError as error:
    print(error.errno)
try:
    bytearray(2**29)
except MemoryError:
    print("no memory")
"""


def test_limits_hold_and_cannot_be_raised_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "file")], capture_output=True, text=True, check=True)
    bytes_, said = int(0.001 * 2**30), done.stdout.splitlines()
    assert said == [f"({bytes_}, {bytes_}) (0, 0) (64, 64)", "27", "no memory"]
    assert (tmp_path / "file").stat().st_size <= bytes_
    assert resource.getrlimit(resource.RLIMIT_FSIZE) != (bytes_, bytes_)
