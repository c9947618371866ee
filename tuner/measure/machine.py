"""The machine that measures: its processor as the system names it. Knows no runtime, so that a server can ask it too."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def processor_features() -> frozenset[str]:
    """The processor's feature flags as the system names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return _mac_features()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.partition(":")[2].split())


def processor_name() -> str:
    """Its model's name; where the system has none, its vendor, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines if ":" in line}
    name = found.get("model name", "")
    if not name or "unknown" in name.lower() or name.isdigit():
        name = f"{found.get('vendor_id', platform.machine())} family {found.get('cpu family', '?')} model {found.get('model', '?')}"
    return name


def _mac_features() -> frozenset[str]:
    if platform.system() != "Darwin":
        return frozenset()
    result = subprocess.run(["sysctl", "-n", "hw.optional.arm.FEAT_DotProd"], capture_output=True, text=True, check=False)
    return frozenset({"asimddp"} if result.stdout.strip() == "1" else ())
