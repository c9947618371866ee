"""A gate whose calls do what a test asks for by the name of the file: the real limits around things that go wrong."""

from __future__ import annotations

import os
import resource
import signal
import time
from typing import Any

from tuner import gate
from tuner.errors import WrongKind

LIMITS = {"files": resource.RLIMIT_FSIZE, "core": resource.RLIMIT_CORE, "open": resource.RLIMIT_NOFILE}


class FakeGate(gate.Gate):
    def inspect_data(self, path: str, name: str) -> Any:
        match name.partition(".")[0]:
            case "slow":
                self._scratch.mkdir()
                (self._scratch / "asleep").write_text(str(os.getpid()))
                time.sleep(60)
            case "greedy":
                bytearray(2**31)
            case "fatal":
                os.kill(os.getpid(), signal.SIGSEGV)
                time.sleep(60)
            case "odd":
                raise KeyError("a\nb")
            case "large":
                with open(path, "wb") as file:
                    file.truncate(2**40)
            case "other":
                raise WrongKind("it is of another kind")
            case "chatty":
                return "x" * 2**21
        held: list[Any] = [{"name": key, "dtype": "x", "shape": [resource.getrlimit(limit)[0]]} for key, limit in LIMITS.items()]
        secrets = [key for key in os.environ if "SECRET" in key]
        held += [{"name": "pid", "dtype": "x", "shape": [os.getpid(), os.getsid(0)]}, {"name": "secrets", "dtype": "x", "shape": secrets}]
        return {"format": "npz", "arrays": held}


if __name__ == "__main__":
    gate.Gate = FakeGate  # type: ignore[misc]
    gate.main()
