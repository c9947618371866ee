"""The files that pages refer to: our own beside this module, and Plotly's script out of its installed package.

Their address holds a digest of all of them, so that browsers keep them for ever and never mix two versions."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

from search_spaces.schemes import Frozen

FOLDER = Path(__file__).parent / "static"
PLOTLY = "plotly.min.js"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_STYLE_MARK = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


class Asset(Frozen):
    """One file, compressed."""

    media_type: str
    packed: bytes

    @property
    def body(self) -> bytes:
        return gzip.decompress(self.packed)


class Assets:
    """Found once; each file is read and compressed when it is first asked for."""

    @cached_property
    def paths(self) -> dict[str, Path]:
        own = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
        return own | {PLOTLY: plotly_script()}

    @cached_property
    def digest(self) -> str:
        """Of all names and contents."""
        digest = hashlib.sha256()
        for name, path in sorted(self.paths.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    @cached_property
    def style_marks(self) -> tuple[str, ...]:
        """Ids of elements that keep Plotly from adding style sheets of its own (for maps), which our policy would refuse: where an
        element with such an id is there, it adds none."""
        return tuple(sorted(set(_STYLE_MARK.findall(self.paths[PLOTLY].read_text(encoding="utf-8")))))

    def get(self, digest: str, name: str) -> Asset | None:
        """None for a name that is none of ours, or for the digest of another version."""
        if digest != self.digest or name not in self.paths:
            return None
        return _packed(self.paths[name])


@cache
def _packed(path: Path) -> Asset:
    return Asset(media_type=TYPES[path.suffix], packed=gzip.compress(path.read_bytes(), 6, mtime=0))


def plotly_script() -> Path:
    """Plotly's script in its package, which need not be imported for that."""
    found = find_spec("plotly")
    assert found is not None and found.origin is not None, "plotly is a dependency"
    return Path(found.origin).parent / "package_data" / PLOTLY
