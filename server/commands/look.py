"""Commands that look at a model or a job and change nothing: inspect, sensitivity, spaces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.console import err, print_table, say, tell
from tuner.errors import JobError, UnknownName
from tuner.export import csv_text
from tuner.files import write_text
from tuner.job import load_job

if TYPE_CHECKING:
    from tuner.model.graph import Model

JobFile = Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)]
ModelFile = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
COLUMNS = ("layer", "op", "weight_shape", "output_shape", "params", "macs", "quantizable")


def inspect(
    model: ModelFile,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the layers as CSV instead.")] = False,
    dependencies: Annotated[
        bool, typer.Option("--dependencies", help="Print as CSV which layers lose channels together; notes go to standard error.")
    ] = False,
) -> None:
    """Show a model's inputs, outputs and layers: parameters, MACs, shapes, and what can be quantized."""
    from tuner.model.graph import Model

    if as_json + as_csv + dependencies > 1:
        raise JobError("give one of --json, --csv and --dependencies: each prints something else")
    loaded = Model.load(model)
    if dependencies:
        _print_groups(loaded)
    elif as_json:
        _print_json(loaded)
    elif as_csv:
        sys.stdout.write(csv_text([COLUMNS, *_rows(loaded)]))
    else:
        _print_model(model, loaded)


def sensitivity(
    job: JobFile,
    file: Annotated[Path | None, typer.Option("-o", help="Write the table as CSV here.", show_default=False)] = None,
    sparsity: Annotated[
        str | None,
        typer.Option("--sparsity", help="Zero shares of each layer's weights instead: 0.1..0.9, or 0.3,0.5,0.7.", show_default=False),
    ] = None,
    early_stop: Annotated[
        float | None,
        typer.Option("--early-stop", min=0, help="With --sparsity: go on to the next layer once the metric lost more.", show_default=False),
    ] = None,
) -> None:
    """Measure how much each layer suffers when it alone is compressed, and what that would save.

    With --sparsity: the job's first metric on the validation rows, with the smallest weights of one layer at zero and nothing trained."""
    from tuner.preflight import check_names

    if early_stop is not None and sparsity is None:
        raise JobError("--early-stop goes with --sparsity")
    shares = None if sparsity is None else shares_of(sparsity)
    spec = load_job(job)
    check_names(spec)
    rows = _survey(spec) if shares is None else _sweep(spec, shares, early_stop)
    if file is not None:
        write_text(file, csv_text(rows))
    if file is None and shares is not None:
        sys.stdout.write(csv_text(rows))
    else:
        print_table(rows[0], rows[1:])


def spaces(
    model: Annotated[Path | None, typer.Option("--model", help="Resolve the spaces for this ONNX file.", show_default=False)] = None,
    space: Annotated[str | None, typer.Option("--space", help="Only this one.", show_default=False)] = None,
    passes: Annotated[bool, typer.Option("--passes", help="Show the steps of plans instead, and the names that each knows.")] = False,
) -> None:
    """List the search spaces; with a model, what each offers for it, and what the runtime forbids and why."""
    from search_spaces.presets import load_preset, preset_names

    if passes:
        if model is not None or space is not None:
            raise JobError("--passes goes alone: the steps of plans are the same for every space and model")
        _print_passes()
        return
    if space is not None and space not in preset_names():
        raise UnknownName("space", space, preset_names())
    names = preset_names() if space is None else (space,)
    if model is None:
        print_table(("space", "what it offers"), ((name, load_preset(name).summary) for name in names))
        return
    _print_spaces(model, names)


def shares_of(text: str) -> list[float]:
    """The shares that `--sparsity` names: every tenth of FIRST..LAST, or those of a list. JobError where it names none."""
    first, dots, last = text.partition("..")
    try:
        found = _tenths(float(first), float(last)) if dots else [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or found != sorted(set(found)) or not all(0 < share < 1 for share in found):
        raise JobError(
            f"--sparsity must name rising shares between 0 and 1, got '{text}'; write a range in steps of 0.1 like 0.1..0.9, "
            "or a list like 0.1,0.3,0.5"
        )
    return found


def _tenths(first: float, last: float) -> list[float]:
    """FIRST, FIRST + 0.1, … up to LAST; empty where these are no shares."""
    if not 0 < first <= last < 1:
        return []
    return [round(first + step / 10, 6) for step in range(int((last - first) * 10 + 1e-6) + 1)]


def _survey(spec: Any) -> list[list[Any]]:
    """The table of what each option of the job's space does, heading first."""
    import tempfile

    from tuner.evaluator import Evaluator
    from tuner.survey import survey

    with tempfile.TemporaryDirectory(prefix="accutune-") as cache:
        found = survey(Evaluator(spec, Path(cache)), lambda done, total: _count("sensitivity", done, total))
    rows = sorted(found.sensitivity, key=lambda row: row.divergence, reverse=True)
    return [list(type(rows[0]).model_fields), *(list(row.model_dump().values()) for row in rows)]


def _sweep(spec: Any, shares: list[float], early_stop: float | None) -> list[list[Any]]:
    """The table of what zeros in each layer do, heading first."""
    import tempfile

    from tuner.sweep import Sweep

    rows: list[list[Any]] = [["layername", *(f"{share:g}" for share in shares)]]
    with tempfile.TemporaryDirectory(prefix="accutune-") as cache:
        made = Sweep(spec, Path(cache), shares, early_stop)
        tell(f"{made.metric.name} of the original on {made.rows:,} validation rows: {made.baseline:.6g}")
        for number, (layer, values) in enumerate(made.run(), start=1):
            tell(f"{number}/{len(made.layers)} {layer}: {', '.join(f'{value:.4g}' for value in values if value is not None)}")
            rows.append([layer, *("" if value is None else value for value in values)])
    return rows


def _rows(model: Model) -> list[tuple[Any, ...]]:
    from tuner.facts import layers_of

    found = ((layer, _shape(layer.weight_shape), _shape(layer.output_shape), "yes" if able else "no") for layer, able in layers_of(model))
    return [(layer.name, layer.op, weight, output, layer.params, layer.macs, able) for layer, weight, output, able in found]


def _print_model(path: Path, model: Model) -> None:
    rows = _rows(model)
    say(f"{path}: opset {model.opset}, {model.size_bytes / 1e6:.2f} MB, SHA-256 {model.sha256[:16]}…")
    say(f"{model.parameters:,} parameters, {sum(row[5] or 0 for row in rows):,} MACs a row (dynamic dimensions counted as 1)")
    for title, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            shape = ", ".join("?" if dim is None else str(dim) for dim in tensor.shape)
            say(f"{title} {tensor.name}: {tensor.dtype} [{shape}]")
    print_table(("layer", "operator", "weight", "output", "parameters", "MACs", "quantizable"), rows)


def _print_json(model: Model) -> None:
    import json
    from dataclasses import asdict

    from tuner.facts import layers_of
    from tuner.model.layers import total_macs

    found = layers_of(model)
    rows = [asdict(layer) | {"quantizable": able} for layer, able in found]
    tensors = {"inputs": [asdict(i) for i in model.inputs], "outputs": [asdict(o) for o in model.outputs]}
    facts = {"sha256": model.sha256, "opset": model.opset, "parameters": model.parameters, "size_bytes": model.size_bytes}
    macs = total_macs([layer for layer, _ in found])
    sys.stdout.write(json.dumps(facts | tensors | {"macs": macs, "layers": rows}, indent=2) + "\n")


def _print_groups(model: Model) -> None:
    from tuner.compress.fusion import unfold
    from tuner.compress.pruning.channels import dependency_csv, find_groups

    groups = find_groups(unfold(model))
    for note in groups.notes:
        tell(note)
    sys.stdout.write(dependency_csv(groups))


def _print_spaces(model: Path, names: tuple[str, ...]) -> None:
    from search_spaces.capability import load_target
    from search_spaces.presets import load_preset
    from search_spaces.space import resolve
    from tuner.compress.fusion import prepare, unfold
    from tuner.compress.parts import parts_of
    from tuner.compress.quantization.placement import candidates
    from tuner.measure.machine import processor_features
    from tuner.model.graph import Model

    original = Model.load(model)
    prepared, base, target = prepare(original), unfold(original), load_target("onnxruntime-cpu")
    processor = target.processor(processor_features())
    for name in names:
        spec = load_preset(name)
        parts, notes = parts_of(base, spec) if spec.structural else ([], [])
        resolved = resolve(spec, candidates(prepared, target), target, processor, parts)
        say(f"\n{name}: {spec.summary}")
        size = f"10^{len(str(resolved.size)) - 1}" if resolved.size > 10**6 else str(resolved.size)
        say(f"{len(resolved.layers)} choices, {size} plans, on {processor.name}")
        layers = ((x.name, x.op, len(x.options), _kinds(x.options, x.step)) for x in resolved.layers)
        print_table(("choice for", "operator", "options", "of kind"), layers)
        for refusal in resolved.refused:
            say(f"left out for {refusal.op}: {refusal.options} options, because {refusal.why}")
        for note in notes:
            say(f"left alone: {note}")


def _print_passes() -> None:
    from server.api.passes import passes

    for view in passes():
        say(f"{view.name}: {view.summary}")
        for option, names in view.names.items():
            say(f"  {view.space}.{option}:")
            for name, what in names.items():
                say(f"    {name:18} {what}")


def _shape(shape: tuple[int | None, ...]) -> str:
    return "×".join("?" if size is None else str(size) for size in shape)


def _kinds(options: tuple[str, ...], step: str) -> str:
    """What there is to choose from: kinds of quantization; else all options, which are few."""
    from search_spaces.schemes import FLOAT, QuantScheme
    from search_spaces.space import QUANTIZE

    if step != QUANTIZE:
        return ", ".join(options)
    return ", ".join(dict.fromkeys(o if o == FLOAT else QuantScheme.parse(o).kind for o in options))


def _count(what: str, done: int, total: int) -> None:
    if err.is_terminal:
        err.print(f"{what} {done}/{total}", end="\r")
