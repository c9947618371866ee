"""The torch view: an ONNX model as modules and functions of torch that can be trained, and written back by name.

A layer whose weights are initializers is a real module (Conv2d, Linear, BatchNorm2d …) named after its node; everything else is a
function of one table (tuner.model.torch_ops)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from tuner.errors import DataError, ModelError, unknown_name
from tuner.model.graph import Model, seal
from tuner.model.torch_build import Builder, Parts, Place, missing
from tuner.model.torch_constants import onnx_tensor, onnx_view, same_values

MOST_WATCHERS = 32
"""How many sets of observed tensors are kept compiled."""


class UnsupportedOperators(ModelError):
    """Operators of a model that the torch view lacks: all of them, each with one node."""

    def __init__(self, operators: Sequence[str]) -> None:
        super().__init__(
            f"the model has operators that training cannot follow: {', '.join(operators)}. Leave out the steps that train, "
            "export the model without these operators, or add them in a plug-in with @operator of tuner.model.torch_ops"
        )
        self.operators = tuple(operators)


def missing_operators(model: Model) -> list[str]:
    """Every operator of the model that the torch view lacks, with one node each; empty where there is a view."""
    return missing(model)


def torch_view(model: Model) -> TorchView:
    """The trainable view of a model, in evaluation mode. UnsupportedOperators lists all operators that it lacks."""
    lacking = missing(model)
    if lacking:
        raise UnsupportedOperators(lacking)
    return TorchView(model, Builder(model).build())


class TorchView(nn.Module):
    """A model as torch computes it. Initializers are known by their ONNX names and shown in the ONNX layout."""

    def __init__(self, model: Model, parts: Parts) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(value.name for value in model.inputs)
        self.outputs = tuple(value.name for value in model.outputs)
        self.trainable: tuple[str, ...] = tuple(name for name in model.initializers if name in parts.places and parts.places[name].trained)
        """The float initializers that are parameters."""
        self._places = parts.places
        self._modules_by_node = parts.modules
        self._tied = parts.tied
        self._graph = parts.graph
        self._nodes = {tensor: node.name for tensor, node in parts.tensors.items()}
        self._watchers: dict[tuple[str, ...], Callable[..., Any]] = {}
        self.graph_module = _graph_module(parts, self._subgraph(self.outputs))
        self.eval()

    def forward(self, feed: Mapping[str, Tensor], observe: Sequence[str] = ()) -> dict[str, Tensor]:
        """The graph's outputs by name, and the tensors to observe by theirs. Feeds that the graph does not have are ignored."""
        absent = [name for name in self.inputs if name not in feed]
        if absent:
            raise DataError(f"the model's inputs {', '.join(absent)} are not fed; give an array for each of {', '.join(self.inputs)}")
        tensors = [feed[name] for name in self.inputs]
        if not observe:
            return dict(zip(self.outputs, self.graph_module(*tensors), strict=True))
        names = tuple(dict.fromkeys((*self.outputs, *observe)))
        return dict(zip(names, self._watcher(names)(self.graph_module, *tensors), strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchView:
        """A view of its own; what nobody changes is shared."""
        memo |= {id(part): part for part in (self.model, self._graph, self._watchers)}
        twin = TorchView.__new__(TorchView)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def modules_by_node(self) -> dict[str, nn.Module]:
        """The modules of torch by the names of their ONNX nodes, in topological order."""
        return {node: self.graph_module.get_submodule(path) for node, path in self._modules_by_node.items()}

    def value(self, initializer: str) -> Tensor:
        """An initializer's tensor in the ONNX layout, detached but in the same storage: writing into it changes the view."""
        place = self._place(initializer)
        return onnx_view(self._tensor(place).detach(), place.layout, place.dims)

    def grad(self, initializer: str) -> Tensor | None:
        """The gradient of an initializer in the ONNX layout; None before the first."""
        place = self._place(initializer)
        gradient = self._tensor(place).grad
        return None if gradient is None else onnx_view(gradient, place.layout, place.dims)

    def parameter(self, initializer: str) -> nn.Parameter:
        """The parameter that an initializer is, in the layout of torch (`transposed` tells where it is turned)."""
        tensor = self._tensor(self._place(initializer))
        if not isinstance(tensor, nn.Parameter):
            raise ModelError(f"initializer '{initializer}' is not trained; trained are {', '.join(self.trainable) or 'none'}")
        return tensor

    def transposed(self, initializer: str) -> bool:
        """Does the parameter hold the transpose of the initializer?"""
        return self._place(initializer).layout == "transposed"

    def write_back(self) -> Model:
        """The model with the view's numbers: initializers that differ are replaced, everything else stays byte for byte."""
        changed = {}
        for name, tensor in self.model.initializers.items():
            if name in self._places:
                now = onnx_tensor(self.value(name), tensor)
                if not same_values(now, tensor):
                    changed[name] = now
        if not changed:
            return self.model
        proto = self.model.copy()
        for tensor in proto.graph.initializer:
            if tensor.name in changed:
                tensor.CopyFrom(changed[tensor.name])
        return seal(proto)

    def _place(self, initializer: str) -> Place:
        if initializer not in self._places or initializer not in self.model.initializers:
            raise ModelError(unknown_name("initializer of the torch view", initializer, set(self._places) & set(self.model.initializers)))
        return self._places[initializer]

    def _tensor(self, place: Place) -> Tensor:
        module, _, name = place.path.rpartition(".")
        tensor: Tensor = getattr(self.graph_module.get_submodule(module), name)
        return tensor

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TorchView:
        """Moving or converting gives each module buffers of its own; those that were one are made one again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for first, other in self._tied:
            module, _, name = other.rpartition(".")
            owner, _, attribute = first.rpartition(".")
            setattr(self.graph_module.get_submodule(module), name, getattr(self.graph_module.get_submodule(owner), attribute))
        return self

    def _watcher(self, names: tuple[str, ...]) -> Callable[..., Any]:
        """A function (graph module, *inputs) that computes these tensors with the view's own modules."""
        if names not in self._watchers:
            if len(self._watchers) >= MOST_WATCHERS:
                self._watchers.clear()
            code = self._subgraph(names).python_code("self")
            scope = dict(code.globals)
            exec(code.src, scope)
            self._watchers[names] = scope["forward"]
        return self._watchers[names]

    def _subgraph(self, names: Sequence[str]) -> fx.Graph:
        """The part of the graph that these tensors need."""
        unknown = next((name for name in names if name not in self._nodes), None)
        if unknown is not None:
            raise ModelError(unknown_name("tensor", unknown, self._nodes))
        wanted = [self._nodes[name] for name in names]
        needed = _needed(self._graph, set(wanted))
        graph = fx.Graph()
        copies: dict[str, fx.Node] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder" or node.name in needed:
                copies[node.name] = graph.node_copy(node, lambda old: copies[old.name])
        graph.output(tuple(copies[name] for name in wanted))
        return graph


def _needed(graph: fx.Graph, wanted: set[str]) -> set[str]:
    """The names of all nodes that lead to the wanted ones."""
    needed = set(wanted)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(source.name for source in node.all_input_nodes)
    return needed


def _graph_module(parts: Parts, graph: fx.Graph) -> fx.GraphModule:
    """The graph as a module that has all modules of the view, those too that only observed tensors need."""
    module = fx.GraphModule(parts.root, graph)
    for name, child in parts.root.named_children():
        module.add_module(name, child)
    return module
