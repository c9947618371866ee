"""Where quantization happens: which nodes work on quantized data and which tensors are quantized for them.

The rules, in the order they apply:

1. A node with a weight is quantized if its choice says so.
2. An operator without a weight joins if its type's choice says so and all it reads is quantized already.
3. An operator that only moves numbers joins if what it reads is quantized and a quantized node wants what it writes; it
   keeps the scale.
4. A tensor is quantized where a quantized node reads it, and where the kernel that writes it needs that (Conv).
5. A tensor has one range. Its scheme is that of the first layer with a weight that reads it, else that of its writer.
6. A Relu or Clip behind a quantized node disappears into an asymmetric range, which starts at zero there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from search_spaces.capability import RuntimeTarget
from search_spaces.schemes import FLOAT, ActivationScheme, QuantScheme, WeightScheme
from search_spaces.space import Candidate
from tuner.model.graph import Model, attribute
from tuner.model.layers import WEIGHT_INPUT, weight_of

OPERATOR_PREFIX = "op:"
"""`op:Add` names all quantizable Add nodes together."""


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor to be quantized. Its range is that of `root`; no readers named: every reader takes the quantized values."""

    scheme: ActivationScheme
    root: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    nodes: dict[str, QuantScheme]
    """Quantized nodes, in topological order. A layer's activation is that of the tensor it reads, whoever chose it."""
    tensors: dict[str, QuantizedTensor]


def candidates(model: Model, target: RuntimeTarget) -> list[Candidate]:
    """What could be quantized in the model: every node with a weight, then every operator type, in topological order."""
    layers, operators = [], {}
    joining = _joining_operators(model, target)
    for node in model.nodes.values():
        if _quantizable_layer(model, node, target):
            reads = "" if node.op_type == "Gather" else _data_inputs(model, node)[0]
            layers.append(Candidate(name=node.name, op=node.op_type, has_weight=True, input=reads))
        elif node.name in joining:
            name = OPERATOR_PREFIX + node.op_type
            operators[name] = Candidate(name=name, op=node.op_type, has_weight=False)
    return [*layers, *operators.values()]


def observed_tensors(model: Model, target: RuntimeTarget, symmetric: bool = True) -> list[str]:
    """Every float tensor whose range some placement could need, in topological order. Without symmetric activations what
    a Relu takes in is never quantized itself."""
    names: dict[str, None] = {}
    joining = _joining_operators(model, target)
    for node in model.nodes.values():
        if not (_quantizable_layer(model, node, target) or node.name in joining):
            continue
        if node.op_type == "Gather":
            continue
        names |= dict.fromkeys(_data_inputs(model, node))
        absorbed = _absorbed(model, node, target)
        if absorbed is None or symmetric:
            names[node.output[0]] = None
        if absorbed is not None:
            names[absorbed.output[0]] = None
    return list(names)


def links(model: Model, target: RuntimeTarget) -> list[tuple[str, str, str]]:
    """(writer, reader, tensor) for every quantizable node that reads what another one writes in quantized form, looking
    through operators that only move numbers and through absorbed activations. Nodes without a weight go by `op:Type`."""
    names, joining = {}, _joining_operators(model, target)
    for node in model.nodes.values():
        if _quantizable_layer(model, node, target):
            names[node.name] = node.name
        elif node.name in joining:
            names[node.name] = OPERATOR_PREFIX + node.op_type
    found = []
    for node in model.nodes.values():
        if node.name not in names or node.op_type == "Gather":
            continue
        for tensor in _data_inputs(model, node):
            writer = _writer(model, tensor, target)
            if writer is None or writer.name not in names:
                continue
            layer = target.layers.get(writer.op_type)
            if names[writer.name] != writer.name or (layer is not None and layer.writes == "quantized"):
                found.append((names[writer.name], names[node.name], tensor))
    return found


def _writer(model: Model, tensor: str, target: RuntimeTarget) -> onnx.NodeProto | None:
    node = model.producers.get(tensor)
    while node is not None and node.op_type in (*target.transparent, *target.absorbed):
        node = model.producers.get(node.input[0])
    return node


def _joining_operators(model: Model, target: RuntimeTarget) -> set[str]:
    """The operators without a weight that some plan quantizes: those that join when everything else is quantized, because
    quantizing more never keeps an operator out."""
    activation = ActivationScheme()
    choices = {}
    for node in model.nodes.values():
        if _quantizable_layer(model, node, target):
            reads = None if FLOAT in target.layers[node.op_type].activation else activation
            choices[node.name] = QuantScheme(activation=reads, weight=WeightScheme())
    choices |= {OPERATOR_PREFIX + op: QuantScheme(activation=activation) for op in target.operators}
    return {name for name, scheme in place(model, choices, target).nodes.items() if scheme.weight is None}


def place(model: Model, choices: Mapping[str, QuantScheme], target: RuntimeTarget) -> Placement:
    """Apply the rules above to one choice per layer name (or `op:Type`); names left out stay in float."""
    return _Placer(model, choices, target).run()


@dataclass
class _Placer:
    model: Model
    choices: Mapping[str, QuantScheme]
    target: RuntimeTarget
    nodes: dict[str, QuantScheme] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)
    """Tensors that are quantized whoever reads them."""

    def run(self) -> Placement:
        for node in self.model.nodes.values():
            scheme = self.choices.get(node.name)
            if scheme is not None and _quantizable_layer(self.model, node, self.target):
                self.nodes[node.name] = scheme
                self.wanted |= set(_data_inputs(self.model, node)) if scheme.activation else set()
        self._join_operators()
        moved = self._join_transparent()
        tensors = self._tensors(moved)
        return Placement({name: self._in_effect(name, tensors) for name in self.model.nodes if name in self.nodes}, tensors)

    def _in_effect(self, name: str, tensors: Mapping[str, QuantizedTensor]) -> QuantScheme:
        """A layer's scheme with the activation that what it reads really has."""
        scheme = self.nodes[name]
        if scheme.weight is None or scheme.activation is None:
            return scheme
        return QuantScheme(activation=tensors[_data_inputs(self.model, self.model.nodes[name])[0]].scheme, weight=scheme.weight)

    def _join_operators(self) -> None:
        for node in self.model.nodes.values():
            scheme = self.choices.get(OPERATOR_PREFIX + node.op_type)
            if node.name in self.nodes:
                self._carry_output(node)
            elif _moves_only(self.model, node, self.target):
                if node.input[0] in self.carried:
                    self.carried.add(node.output[0])
            elif scheme is not None and _quantizable_operator(self.model, node, self.target):
                if all(name in self.carried or name in self.wanted for name in node.input):
                    self.nodes[node.name] = scheme
                    self.wanted |= set(node.input)
                    self._carry_output(node)

    def _carry_output(self, node: onnx.NodeProto) -> None:
        if not _writes_quantized(node, self.nodes[node.name], self.target):
            return
        absorbed = _absorbed(self.model, node, self.target)
        self.carried.add(absorbed.output[0] if absorbed is not None else node.output[0])

    def _join_transparent(self) -> dict[str, str]:
        """{output: input} of the operators that join because they only move numbers. Works backwards, so that chains join."""
        moved: dict[str, str] = {}
        for node in reversed(list(self.model.nodes.values())):
            if node.output[0] in self.wanted and _moves_only(self.model, node, self.target) and node.input[0] in self.carried:
                moved[node.output[0]] = node.input[0]
                self.wanted.add(node.input[0])
        return moved

    def _tensors(self, moved: Mapping[str, str]) -> dict[str, QuantizedTensor]:
        def root(name: str) -> str:
            while name in moved:
                name = moved[name]
            return name

        schemes: dict[str, ActivationScheme] = {}
        for name, scheme in self.nodes.items():
            if scheme.weight is not None and scheme.activation is not None:
                for tensor in _data_inputs(self.model, self.model.nodes[name]):
                    schemes.setdefault(root(tensor), scheme.activation)
        found: dict[str, QuantizedTensor] = {}
        for node in self.model.nodes.values():
            if node.name in self.nodes and _writes_quantized(node, self.nodes[node.name], self.target):
                self._place_output(node, schemes, found)
        for tensor in self._order(self.wanted):
            if tensor not in found:
                readers = self._readers(tensor, moved)
                activation = schemes.get(root(tensor)) or self._reader_scheme(readers)
                if activation is not None:
                    found[tensor] = QuantizedTensor(activation, root(tensor), () if tensor in moved else readers)
        return {tensor: found[tensor] for tensor in self._order(found)}

    def _place_output(self, node: onnx.NodeProto, schemes: dict[str, ActivationScheme], found: dict[str, QuantizedTensor]) -> None:
        own = self.nodes[node.name].activation
        assert own is not None
        output, absorbed = node.output[0], _absorbed(self.model, node, self.target)
        if absorbed is not None:
            last = absorbed.output[0]
            scheme = schemes.setdefault(last, own)
            if not scheme.symmetric:
                found[last] = QuantizedTensor(scheme, last, ())
                return
        found[output] = QuantizedTensor(schemes.setdefault(output, own), output, ())

    def _readers(self, tensor: str, moved: Mapping[str, str]) -> tuple[str, ...]:
        """The nodes that take the quantized values of a tensor whose writer works in float."""
        readers = self.model.consumers.get(tensor, [])
        return tuple(node.name for node in readers if node.name in self.nodes or moved.get(node.output[0]) == tensor)

    def _reader_scheme(self, readers: tuple[str, ...]) -> ActivationScheme | None:
        return next((scheme.activation for name in readers if (scheme := self.nodes.get(name)) and scheme.activation), None)

    def _order(self, tensors: Iterable[str]) -> list[str]:
        position = {name: index for index, name in enumerate([*(i.name for i in self.model.inputs), *self.model.producers])}
        return sorted(tensors, key=lambda name: position[name])


def _data_inputs(model: Model, node: onnx.NodeProto) -> list[str]:
    """The activations that a node with a weight reads: all but its weight and bias."""
    weight = weight_of(model, node)
    inputs = node.input[:2] if node.op_type in WEIGHT_INPUT else node.input
    return [name for name in inputs if name and name != weight]


def _quantizable_layer(model: Model, node: onnx.NodeProto, target: RuntimeTarget) -> bool:
    weight = weight_of(model, node)
    if weight is None or node.op_type not in target.layers:
        return False
    if node.op_type == "Gather":
        return bool(attribute(node, "axis", 0) == 0)
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1 or attribute(node, "transA", 0)):
        return False
    bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
    # The integer kernel takes a stack of matrices with one scale in all only, and none on the left.
    right = node.op_type != "MatMul" or (node.input[1] == weight and len(model.initializers[weight].dims) == 2)
    data = _data_inputs(model, node)
    computed = data != [] and all(name in model.producers or name not in model.initializers for name in data)
    return right and computed and (not bias or bias in model.initializers) and weight not in _graph_outputs(model)


def _quantizable_operator(model: Model, node: onnx.NodeProto, target: RuntimeTarget) -> bool:
    """Operators whose operands are all computed: with a constant operand there is nothing to gain."""
    return (
        not node.domain
        and node.op_type in target.operators
        and weight_of(model, node) is None
        and all(name and name not in model.initializers for name in node.input)
        and all(name in model.producers or name in {i.name for i in model.inputs if i.dtype == "float32"} for name in node.input)
    )


def _moves_only(model: Model, node: onnx.NodeProto, target: RuntimeTarget) -> bool:
    """Does the node only move numbers? A Pad does where it adds zeros: another constant need not lie in the range."""
    if node.op_type not in target.transparent or node.domain:
        return False
    if node.op_type != "Pad" or len(node.input) < 3 or not node.input[2]:
        return True
    value = node.input[2]
    return value in model.initializers and bool(model.array(value).item() == 0)


def _writes_quantized(node: onnx.NodeProto, scheme: QuantScheme, target: RuntimeTarget) -> bool:
    """Does the integer kernel of this node need a quantized output?"""
    if scheme.activation is None:
        return False
    return scheme.weight is None or target.layers[node.op_type].writes == "quantized"


def _absorbed(model: Model, node: onnx.NodeProto, target: RuntimeTarget) -> onnx.NodeProto | None:
    """The Relu or Clip that alone reads the node's output and starts at zero."""
    readers = model.consumers.get(node.output[0], [])
    if len(readers) != 1 or node.output[0] in _graph_outputs(model) or readers[0].op_type not in target.absorbed:
        return None
    reader = readers[0]
    if reader.op_type == "Clip":
        low = reader.input[1] if len(reader.input) > 1 else ""
        if low not in model.initializers or model.array(low).item() != 0:
            return None
    return reader


def _graph_outputs(model: Model) -> set[str]:
    return {output.name for output in model.outputs}
