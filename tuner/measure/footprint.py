"""What a model needs besides time: bytes on disk, bytes when compressed, memory while running."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import TrialError

_PROBE = """
import json, os, resource, sys
import numpy as np
import onnxruntime as ort
def peak():
    # Linux hands ru_maxrss down to a child: a large parent would hide what the model needs.
    if os.path.exists("/proc/self/status"):
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
feed = dict(np.load(sys.argv[2]))
before = peak()
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
options.log_severity_level = 4
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
for _ in range(3):
    session.run(None, feed)
print(json.dumps({"total": peak(), "before": before}))
"""


def compressed_size(data: bytes) -> int:
    """Bytes of the file after DEFLATE (zlib level 6): what a download or an archive takes."""
    packer = zlib.compressobj(6)
    step = 1 << 20
    return sum(len(packer.compress(data[first : first + step])) for first in range(0, len(data), step)) + len(packer.flush())


def peak_memory(model: Path, feed: dict[str, NDArray[Any]], threads: int, folder: Path, timeout: float = 120.0) -> int:
    """Bytes that loading and running the model adds to a fresh process that has nothing but the runtime, at its peak.

    TrialError where that process fails."""
    inputs = folder / "peak-feed.npz"
    np.savez(inputs, **feed)  # type: ignore[arg-type]
    try:
        command = [sys.executable, "-c", _PROBE, str(model), str(inputs), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        raise TrialError(f"measuring peak memory of {model.name} failed: {error}", step="peak memory") from error
    finally:
        inputs.unlink(missing_ok=True)
    figures = json.loads(done.stdout)
    return int(figures["total"] - figures["before"])
