"""The direction of imports, read from the syntax trees: search_spaces ← tuner ← server, and an order within each.

Imports inside functions, under TYPE_CHECKING and through `importlib.import_module("…")` count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("search_spaces", "tuner", "server")

# `a.b.*` means the package a.b with everything below it, `a.b` that module alone.
BASE = {"search_spaces.*", "tuner.errors", "tuner.registry"}
WORDS = BASE | {"tuner.files", "tuner.tensors", "tuner.kinds", "tuner.limits", "tuner.plan", "tuner.job", "tuner.results", "tuner.progress"}
PARTS = WORDS | {"tuner.model.*", "tuner.data.*"}
EVALUATION = PARTS | {"tuner.compress.*", "tuner.measure.*", "tuner.evaluator"}
OUTPUT = WORDS | {"tuner.report", "tuner.report.*", "tuner.export"}
# What stands above the worker calls it through the executor and never computes itself; of preflight it takes the check of names.
ANSWERS = {"tuner.executor", "tuner.preflight"}
LOOP = OUTPUT | ANSWERS | {"tuner.search.*", "tuner.store", "tuner.study", "tuner.verdict"}
KEEPING = {"tuner.wire", "server.settings", "server.store.*", "server.artifacts"}
SERVING = KEEPING | {f"server.{name}" for name in ("auth", "sessions", "gate", "inputs", "metrics", "logs")}

MAY_IMPORT: dict[str, set[str]] = {
    "search_spaces": set(),
    "search_spaces.domains": set(),
    "search_spaces.schemes": {"search_spaces.domains"},
    "search_spaces.capability": {"search_spaces.domains", "search_spaces.schemes"},
    "search_spaces.structure": {"search_spaces.domains", "search_spaces.schemes"},
    "search_spaces.structure_names": set(),
    "search_spaces.recovery": {"search_spaces.domains", "search_spaces.schemes"},
    "search_spaces.space": {f"search_spaces.{name}" for name in ("domains", "schemes", "capability", "structure", "recovery")},
    "search_spaces.presets": {"search_spaces.schemes", "search_spaces.space"},
    "tuner": WORDS | {"tuner.api", "tuner.client"},
    "tuner.errors": set(),
    "tuner.registry": {"tuner.errors"},
    "tuner.files": {"tuner.errors"},
    "tuner.kinds": set(),
    "tuner.tensors": {"tuner.errors"},
    "tuner.limits": set(),
    "tuner.plan": BASE,
    "tuner.job": BASE,
    "tuner.results": BASE | {"tuner.plan"},
    "tuner.progress": BASE | {"tuner.results"},
    "tuner.store": WORDS,
    "tuner.wire": WORDS | {"tuner.store"},
    "tuner.rows": WORDS,
    "tuner.transport": WORDS | {"tuner.wire"},
    "tuner.transfer": WORDS | {"tuner.transport"},
    "tuner.client": WORDS | {"tuner.store", "tuner.wire", "tuner.preview", "tuner.transport", "tuner.transfer"},
    "tuner.facts": EVALUATION | {"tuner.wire"},
    "tuner.preview": {"search_spaces.schemes"},
    "tuner.estimate": set(),
    "tuner.outlook": EVALUATION
    | {f"tuner.{name}" for name in ("preflight", "survey", "cost_table", "structures", "structure_table", "estimate", "preview")},
    "tuner.gate": EVALUATION | {"tuner.preflight", "tuner.outlook", "tuner.preview", "tuner.wire", "tuner.worker", "tuner.facts"},
    "tuner.model.*": WORDS,
    "tuner.data.*": WORDS,
    "tuner.compress.*": PARTS,
    "tuner.measure.*": PARTS,
    "tuner.search.*": WORDS,
    "tuner.compare": EVALUATION,
    "tuner.doctor": EVALUATION | {"tuner.cost_table"},
    "tuner.structures": PARTS | {"tuner.compress.*", "tuner.calibration"},
    "tuner.calibration": PARTS | {"tuner.compress.*", "tuner.measure.*"},
    "tuner.evaluator": PARTS | {"tuner.compress.*", "tuner.measure.*", "tuner.structures", "tuner.calibration"},
    "tuner.cost_table": EVALUATION,
    "tuner.structure_table": EVALUATION | {"tuner.cost_table"},
    "tuner.structure_harm": EVALUATION,
    "tuner.survey": EVALUATION | {"tuner.cost_table", "tuner.structure_table", "tuner.structure_harm"},
    "tuner.layer_profiles": EVALUATION,
    "tuner.sweep": EVALUATION,
    "tuner.preflight": EVALUATION | {"tuner.structure_checks"},
    "tuner.structure_checks": WORDS,
    "tuner.certify": EVALUATION,
    "tuner.worker": EVALUATION | {"tuner.survey", "tuner.layer_profiles", "tuner.preflight", "tuner.certify"},
    "tuner.executor": WORDS,
    "tuner.report": {"tuner.report.page"},
    "tuner.report.charts": set(),
    "tuner.report.wording": WORDS,
    "tuner.report.figures": WORDS | {"tuner.report.charts", "tuner.report.wording"},
    "tuner.report.structure": WORDS | {"tuner.report.wording"},
    "tuner.report.page": WORDS | {f"tuner.report.{name}" for name in ("charts", "wording", "figures", "structure")},
    "tuner.export": OUTPUT | {"tuner.wire"},
    "tuner.verdict": WORDS,
    "tuner.study": LOOP,
    "tuner.conclude": LOOP | {"tuner.measure.runtime"},
    "tuner.api": LOOP | PARTS | {"tuner.conclude"},
    "tuner.demo": LOOP | PARTS | {"tuner.conclude", "tuner.api"},
    "server": set(),
    "server.settings": WORDS,
    "server.store.*": WORDS | {"tuner.store", "tuner.wire"},
    "server.places": WORDS,
    "server.artifacts": WORDS | {"server.places"},
    "server.auth": WORDS | {"tuner.store", "tuner.wire", "server.store.*"},
    "server.sessions": WORDS | {"tuner.store", "tuner.wire", "server.auth", "server.store.*"},
    "server.gate": WORDS | {"tuner.executor", "tuner.wire", "tuner.preview"},
    "server.inputs": WORDS | {"tuner.wire", "server.store.*", "server.artifacts"},
    "server.runner": LOOP | KEEPING | {"tuner.conclude", "tuner.worker", "server.inputs"},
    "server.scheduler": WORDS | {"tuner.executor", "tuner.store", "tuner.wire", "server.settings", "server.store.*"},
    "server.metrics": WORDS | {"tuner", "tuner.wire", "tuner.store", "server.store.*"},
    "server.logs": WORDS,
    "server.api.*": SERVING | {"search_spaces.*", "tuner.*"},
    "server.dashboard.*": {"search_spaces.schemes", "tuner", "tuner.*", "server.auth", "server.api.*", "server.store.*"},
    "server.service": {"tuner.*", "server.*"},
    "server.app": {"search_spaces.*", "tuner.*", "server.*"},
    "server.console": {"search_spaces.*", "tuner.*"},
    "server.folder": {"tuner.*", "server.console", "server.store.*"},
    "server.cli": {"search_spaces.*", "tuner.*", "server.*"},
    "server.commands.*": {"search_spaces.*", "tuner.*", "server.*"},
}

# Libraries that are slow to import or that one part alone should know, and who may import them.
HEAVY: dict[str, set[str]] = {
    "onnx": {"tuner.*"},
    "onnxruntime": {"tuner.measure.runtime"},
    "onnxscript": {"tuner.model.from_torch*"},
    "optuna": {"tuner.search.*"},
    "plotly": {"tuner.search.*"},
    "pyarrow": {"tuner.data.*"},
    "scipy": {"tuner.*"},
    "sklearn": {"tuner.demo"},
    "sqlalchemy": {"server.store.*"},
    "alembic": {"server.store.*"},
    "fsspec": {"server.places"},
    "fastapi": {"server.api.*", "server.dashboard.*", "server.app"},
    "starlette": {"server.api.*", "server.dashboard.*", "server.app"},
    "uvicorn": {"server.commands.*"},
    "prometheus_client": {"server.metrics", "server.api.*"},
    "httpx": {"tuner.client", "tuner.transport"},
    "torch": {"tuner.model.from_torch*", "tuner.model.torch_*", "tuner.compress.*", "tuner.data.metrics", "tuner.demo", "tuner.api"},
    "safetensors": {"tuner.tensors"},
    "torchmetrics": {"tuner.data.metrics"},
}

FILE_LINES = 400
FUNCTION_LINES = 50


def covers(pattern: str, module: str) -> bool:
    return fnmatchcase(module, pattern) or pattern == f"{module}.*"


def row_of(module: str) -> str | None:
    """The most exact row of MAY_IMPORT for a module; None where it has none."""
    return max((row for row in MAY_IMPORT if covers(row, module)), key=len, default=None)


def module_files() -> dict[str, Path]:
    """Every module of the three packages with its file."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(tree: ast.AST, package: str, known: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import; `from a import b` gives a.b where that is a module in `known`.

    package: the package that relative imports count from."""
    modules = set(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, package)
            for full in (f"{source}.{alias.name}" for alias in node.names):
                yield node.lineno, full if full in modules else source
        elif isinstance(node, ast.Call) and (name := imported_by_call(node)):
            yield node.lineno, name


def absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def imported_by_call(node: ast.Call) -> str | None:
    """The name that a call of import_module or __import__ with a literal imports."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    return literal if function in ("import_module", "__import__") and isinstance(literal, str) else None


def forbidden(module: str, imported: str) -> str | None:
    """Why `module` must not import `imported`; None where it may."""
    top = imported.partition(".")[0]
    if top in PACKAGES:
        row = row_of(module) or module
        may = MAY_IMPORT.get(row, set())
        if any(covers(pattern, imported) for pattern in {row, *may}):
            return None
        return f"may import only {', '.join(sorted(may)) or 'nothing of ours'}"
    homes = HEAVY.get(top)
    if homes is None or any(covers(home, module) for home in homes):
        return None
    return f"{top} belongs to {', '.join(sorted(homes))}"


def breaches(sources: Mapping[str, tuple[str, str]]) -> list[str]:
    """Every forbidden import of {module: (its package, its source)}, one sentence each."""
    found = []
    for module, (package, source) in sources.items():
        if row_of(module) is None:
            found.append(f"{module} has no row: add it to MAY_IMPORT in tests/test_layering.py, beside the modules of its block")
            continue
        for line, imported in imports(ast.parse(source), package, sources):
            if reason := forbidden(module, imported):
                found.append(f"{module}:{line} imports {imported}, but {reason}")
    return found


def project_sources() -> dict[str, tuple[str, str]]:
    files = module_files()
    package = {name: name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in files.items()}
    return {name: (package[name], path.read_text(encoding="utf-8")) for name, path in files.items()}


def test_every_import_points_upwards() -> None:
    assert "\n".join(breaches(project_sources())) == ""


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("search_spaces.space", "import tuner.errors", "imports tuner.errors"),
        ("tuner.job", "from server import store", "imports server.store"),
        ("tuner.compress.fusion", "def f():\n    from tuner.measure import latency", "tuner.compress.fusion:2 imports tuner.measure"),
        ("tuner.measure.latency", "from ..compress import fusion", "imports tuner.compress.fusion"),
        ("tuner.search.base", "import importlib\nimportlib.import_module('tuner.compress.fusion')", "tuner.search.base:2"),
        ("tuner.study", "if TYPE_CHECKING:\n    from tuner import worker", "tuner.study:2"),
        ("tuner.evaluator", "import torch.nn as nn", "torch belongs to"),
        ("search_spaces.schemes", "import onnx", "onnx belongs to"),
        ("server.store.tables", "from optuna import trial", "optuna belongs to tuner.search.*"),
        ("tuner.novelty", "", "tuner.novelty has no row: add it to MAY_IMPORT in tests/test_layering.py"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, complaint: str) -> None:
    known = ("server.store", "tuner.measure", "tuner.compress.fusion", "tuner.worker")
    sources = {module: (module.rpartition(".")[0], source)} | {name: (name, "") for name in known if name != module}
    found = breaches(sources)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tuner.compress.quantization.qdq", "from tuner.compress.fusion import fuse\nfrom tuner.model import graph"),
        ("tuner.model.torch_view", "import torch\nfrom . import graph"),
        ("tuner.evaluator", "from tuner.compress import fusion\nfrom tuner.measure import runtime"),
        ("server.cli", "from tuner.compress import fusion\nimport server.store, json, typer"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert breaches({module: (module.rpartition(".")[0], source)}) == []


def test_no_file_is_too_long() -> None:
    folders = (*PACKAGES, "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] + scripts()
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > FILE_LINES} == {}


def test_no_line_of_a_script_is_too_long() -> None:
    """Those of Python are the linter's."""
    long = [(path.name, number) for path in scripts() for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 140]
    assert long == []


def scripts() -> list[Path]:
    """The modules of the pages."""
    return sorted((ROOT / "server" / "dashboard" / "static").glob("*.js"))


def test_no_function_is_too_long() -> None:
    long = []
    for name, path in module_files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES:
                long.append(f"{name}.{node.name}")
    assert long == []
