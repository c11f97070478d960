"""Write a graph for an older ONNX opset than PyTorch does, by edits that change no number: more runtimes can read it.

PyTorch writes opset 18 and newer. What came with 14 to 18 is, operator by operator, one of: more types; an attribute whose default is the old
behaviour; `axes` of the reductions as an input instead of an attribute; a new operator. Each node is held against the operator's schema in
the older opset; whatever does not fit is an obstacle, and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper

from fastcnn.errors import RequestError

LOWEST = 13
# The lowest that PyTorch writes itself.
WRITTEN = 18

# The default of RoiAlign's new attribute in 16 is another behaviour than the one before.
_OTHER_MEANING = {("RoiAlign", 16)}


def lowest_opset(model: ModelProto) -> int:
    """The lowest opset, at least 13, that a model of opset 18 can be written for."""
    return next(opset for opset in range(LOWEST, WRITTEN + 1) if not obstacles(model, opset))


def obstacles(model: ModelProto, opset: int) -> list[str]:
    """Why a model of opset 18 cannot be written for an older one, an operator each; empty where it can."""
    found = (_obstacle(node, opset, scope) for scope in _scopes(model.graph) for node in scope.graph.node)
    return list(dict.fromkeys(reason for reason in found if reason))


def to_opset(model: ModelProto, opset: int, name: str) -> None:
    """Rewrite the model `name` of opset 18 for an older one, in place. Raises RequestError, naming what does not exist there."""
    found = obstacles(model, opset)
    if found:
        raise RequestError(f"{name} cannot be written for ONNX opset {opset} (the lowest is {lowest_opset(model)}): {'; '.join(found)}")
    for scope in _scopes(model.graph):
        for node in scope.graph.node:
            _rewrite(node, opset, scope)
    _drop_unused_initializers(model.graph)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = opset


def drop_allowzero(model: ModelProto) -> None:
    """Remove `allowzero` from each Reshape, in place, except where a 0 in a constant shape means a dimension of 0.

    No dimension of a picture is 0; and in a computed shape only the batch can be, which a 0 without the attribute copies.
    """
    for scope in _scopes(model.graph):
        for node in scope.graph.node:
            if node.op_type != "Reshape" or 0 in scope.numbers(node.input[1]):
                continue
            _keep_attributes(node, lambda attribute: attribute.name != "allowzero")


class _Scope:
    """A graph, with the types and the constants that its nodes see."""

    def __init__(self, graph: GraphProto, outer: _Scope | None = None) -> None:
        self.graph = graph
        self._types: dict[str, int] = dict(outer._types) if outer else {}
        self._constants: dict[str, TensorProto] = dict(outer._constants) if outer else {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self._types[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            self._types[tensor.name] = tensor.data_type
            self._constants[tensor.name] = tensor
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._types[node.output[0]] = node.attribute[0].t.data_type
                self._constants[node.output[0]] = node.attribute[0].t

    def type_of(self, value: str) -> str:
        """As schemas write it: "tensor(float16)"; empty where it is not known."""
        element = self._types.get(value, TensorProto.UNDEFINED)
        if element == TensorProto.UNDEFINED:
            return ""
        return f"tensor({TensorProto.DataType.Name(element).lower()})"

    def is_constant(self, value: str) -> bool:
        return value in self._constants

    def numbers(self, value: str) -> list[int]:
        """Of a constant vector of whole numbers; empty for a computed one."""
        return numpy_helper.to_array(self._constants[value]).flatten().tolist() if value in self._constants else []


def _scopes(graph: GraphProto, outer: _Scope | None = None) -> Iterator[_Scope]:
    """The graph, and those inside its nodes."""
    scope = _Scope(graph, outer)
    yield scope
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _scopes(inner, scope)


def _obstacle(node: NodeProto, opset: int, scope: _Scope) -> str:
    """Why this node cannot be written for `opset`; empty where it can."""
    new = defs.get_schema(node.op_type, WRITTEN, "")
    try:
        old = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return f"{node.op_type} exists from opset {_first_version(node.op_type)}"
    if old.since_version == new.since_version:
        return ""
    what = f"{node.op_type} of opset {new.since_version}"
    if (node.op_type, new.since_version) in _OTHER_MEANING:
        return f"{what} means something else below"
    moved = _axes_were_an_attribute(node, old)
    if moved and not scope.is_constant(node.input[1]):
        return f"{what} takes axes that are computed"
    known = old.attributes
    for attribute in node.attribute:
        if attribute.name not in known and not _is_default(attribute, new.attributes):
            return f"{what} has {attribute.name}={helper.get_attribute_value(attribute)}"
    inputs = list(node.input)[:1] if moved else list(node.input)
    for values, formal, most in ((inputs, old.inputs, old.max_input), (node.output, old.outputs, old.max_output)):
        if len(values) > most:
            return f"{what} has {len(values)} inputs or outputs, {most} before"
        for position, value in enumerate(values):
            if value and scope.type_of(value) not in formal[min(position, len(formal) - 1)].types:
                return f"{what} takes or gives {scope.type_of(value) or 'an unknown type'}"
    return ""


def _rewrite(node: NodeProto, opset: int, scope: _Scope) -> None:
    """What `_obstacle` found possible."""
    old = defs.get_schema(node.op_type, opset, "")
    if old.since_version == defs.get_schema(node.op_type, WRITTEN, "").since_version:
        return
    known = old.attributes
    _keep_attributes(node, lambda attribute: attribute.name in known)
    if _axes_were_an_attribute(node, old):
        node.attribute.append(helper.make_attribute("axes", scope.numbers(node.input[1])))
        del node.input[1:]


def _axes_were_an_attribute(node: NodeProto, old: defs.OpSchema) -> bool:
    return node.op_type.startswith("Reduce") and len(node.input) == 2 and bool(node.input[1]) and "axes" in old.attributes


def _keep_attributes(node: NodeProto, wanted: Callable[[AttributeProto], bool]) -> None:
    kept = [attribute for attribute in node.attribute if wanted(attribute)]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_default(attribute: AttributeProto, schema: Mapping[str, defs.OpSchema.Attribute]) -> bool:
    """Whether an attribute says what its absence would."""
    default = schema[attribute.name].default_value
    return default.name == attribute.name and helper.get_attribute_value(attribute) == helper.get_attribute_value(default)


def _first_version(op_type: str) -> int:
    return min(schema.since_version for schema in defs.get_all_schemas_with_history() if (schema.domain, schema.name) == ("", op_type))


def _drop_unused_initializers(graph: GraphProto) -> None:
    """Axes that became attributes are read no more."""
    read = {name for scope in _scopes(graph) for node in scope.graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
