"""Changes to a copy of a graph: constants replaced, a node given a constant of its own, shapes that Concat puts together mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tuner.compress.pruning.moving_rules import part_of
from tuner.compress.pruning.tracing import Fixed, Trace, has_input
from tuner.model.graph import Model, seal

_SPLIT_INPUT = 13
"""The first operator set in which Split reads its sizes."""


class Editor:
    """One copy of a traced model, while it is changed."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.proto = trace.model.copy()
        self.nodes = {node.name: node for node in self.proto.graph.node}
        self._makers = {name: node for node in self.proto.graph.node for name in node.output}
        self._initializers = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self._taken = {*self._initializers, *self._makers, *(value.name for value in self.proto.graph.input)}
        self._added: dict[str, list[onnx.NodeProto]] = {}
        self._mended: dict[tuple[str, tuple[tuple[int, int], ...]], str] = {}

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other values, for all that read it."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if name in self._initializers:
            self._initializers[name].CopyFrom(tensor)
        else:
            node = self._makers[name]
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", tensor))
        for value in self.proto.graph.input:
            if value.name == name:
                value.CopyFrom(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))

    def add(self, name: str, values: NDArray[Any]) -> str:
        """A new constant; its name is lengthened where it is taken."""
        name = self._free(name)
        self.proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def set_ints(self, name: str, position: int, attribute: str, values: list[int]) -> None:
        """Whole numbers that a node is given by a constant input or an attribute."""
        node = self.nodes[name]
        if not has_input(node, position):
            self.set_attribute(name, attribute, values)
            return
        old = numpy_helper.to_array(self.trace.constants[node.input[position]])
        node.input[position] = self._vector(node.input[position], name, np.array(values, old.dtype))

    def set_attribute(self, name: str, attribute: str, value: int | list[int] | None) -> None:
        """None: the attribute goes."""
        node = self.nodes[name]
        kept = [onnx.AttributeProto.FromString(item.SerializeToString()) for item in node.attribute if item.name != attribute]
        del node.attribute[:]
        node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(attribute, value)])

    def set_split(self, name: str, sizes: list[int]) -> None:
        """Sizes of the parts that Split makes, which it need not have been told before."""
        node = self.nodes[name]
        if has_input(node, 1) or self.trace.model.opset < _SPLIT_INPUT:
            self.set_ints(name, 1, "split", sizes)
            return
        self.set_attribute(name, "num_outputs", None)
        sizes_name = self.add(f"{name}.split", np.array(sizes, np.int64))
        del node.input[1:]
        node.input.append(sizes_name)

    def set_numbers(self, name: str, position: int, changes: Mapping[int, int]) -> None:
        """Some numbers of a shape that a node reads, which may be put together by Concat."""
        node = self.nodes[name]
        node.input[position] = self._changed(node.input[position], name, changes, alone=True)

    def finish(self) -> Model:
        self._place_added()
        self._drop_orphans()
        del self.proto.graph.value_info[:]
        return seal(self.proto)

    def _vector(self, name: str, reader: str, values: NDArray[Any]) -> str:
        if self._is_own(name) and name in self.trace.constants:
            self.replace(name, values)
            return name
        return self.add(f"{name}.{reader}", values)

    def _is_own(self, name: str) -> bool:
        return self.trace.readers[name] == 1 and name not in self.trace.captured

    def _changed(self, name: str, reader: str, changes: Mapping[int, int], alone: bool) -> str:
        """The name of a vector like `name` with other numbers. alone: nothing else reads what leads from it to the reader."""
        alone = alone and self._is_own(name)
        key = (name, tuple(sorted(changes.items())))
        if not alone and key in self._mended:
            return self._mended[key]
        elements = self.trace.elements(name) or ()
        if all(isinstance(element, Fixed) for element in elements):
            values = [changes.get(index, element.value) for index, element in enumerate(elements) if isinstance(element, Fixed)]
            array = np.array(values, np.int64)
            changed = self._vector(name, reader, array) if alone else self.add(f"{name}.{reader}", array)
        else:
            changed = self._changed_concat(name, reader, changes, alone)
        self._mended[key] = changed
        return changed

    def _changed_concat(self, name: str, reader: str, changes: Mapping[int, int], alone: bool) -> str:
        node = self._makers[name]
        if not alone:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.name, copy.output[0] = f"{node.name}.{reader}", self._free(f"{name}.{reader}")
            self._added.setdefault(reader, []).append(copy)
            node = copy
        wanted: dict[int, dict[int, int]] = {}
        for index, value in changes.items():
            part, offset = part_of(self.trace, self.trace.model.producers[name], index)
            wanted.setdefault(part, {})[offset] = value
        for part, inner in wanted.items():
            node.input[part] = self._changed(node.input[part], reader, inner, alone)
        return str(node.output[0])

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _place_added(self) -> None:
        """New nodes stand before the first that reads them, the innermost first."""
        if not self._added:
            return
        nodes = []
        for node in self.proto.graph.node:
            nodes += [*reversed(self._added.get(node.name, [])), node]
        _set_nodes(self.proto.graph, nodes)

    def _drop_orphans(self) -> None:
        """What was read before and is not any more goes."""
        lost = set(self.trace.readers) - self.trace.captured
        while True:
            read = Counter(name for node in self.proto.graph.node for name in node.input)
            kept = [node for node in self.proto.graph.node if any(o and (o in read or o not in lost) for o in node.output)]
            if len(kept) == len(self.proto.graph.node):
                break
            _set_nodes(self.proto.graph, kept)
        for index in reversed(range(len(self.proto.graph.initializer))):
            name = self.proto.graph.initializer[index].name
            if name in lost and name not in read:
                del self.proto.graph.initializer[index]


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
