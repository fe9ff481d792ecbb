"""The syntax tree of a compiled condition. In its text constants, escape sequences are already replaced.

CEL serialises the tree as protobuf (`CheckedExpr` in cel/expr/checked.proto, `Expr` in cel/expr/syntax.proto).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from proxy.access.expression_text import ARGUMENTS, BadExpression

CONSTANT, NAME, MEMBER, HAS, CALL, LIST, MAP, LOOP = "constant", "name", "member", "has", "call", "list", "map", "loop"


class Node(NamedTuple):
    """A part of a condition."""

    kind: str
    # The text of a text constant (None for other constants), or the name of a variable, member or function. For a loop,
    # which is an expanded macro such as `exists`, the name of its variable.
    value: str | None
    # Of a member or of `has`: the object. Of a map: its keys and values. Of a loop: range, initial result, condition,
    # step and result.
    parts: tuple["Node", ...]
    at: int  # Position in the text, from 0.


def tree_of(serialized: bytes) -> Node:
    """Return the tree of a compiled expression. Raises BadExpression or RecursionError."""
    checked = _message(_message(serialized)[2][0])  # The message is wrapped in an Any.
    source = _message(checked[5][0])
    entries = (_message(each) for each in source.get(4, ()))
    return _node(checked[4][0], {entry.get(1, [0])[0]: entry.get(2, [0])[0] for entry in entries})


# By field number in `Expr`: the kind of node, the field number of its name, and the field numbers of its parts.
_KINDS: dict[int, tuple[str, int, tuple[int, ...]]] = {
    4: (NAME, 1, ()),
    5: (MEMBER, 2, (1,)),
    6: (CALL, 2, (1, 3)),
    7: (LIST, 0, (1,)),
    9: (LOOP, 1, (2, 4, 5, 6, 7)),
}


def _node(data: bytes, places: Mapping[int, int]) -> Node:
    fields = _message(data)
    at = places.get(fields.get(2, [0])[0], 0)
    number = next(number for number in fields if number != 2)  # 2 is the id.
    inner = _message(fields[number][0])
    if number == 3:
        text = next((inner[number][0] for number in (6, 7) if number in inner), None)  # A string, or bytes.
        return Node(CONSTANT, None if text is None else text.decode(errors="replace"), (), at)
    if number == 8:
        if 1 in inner:
            raise BadExpression("Protobuf messages cannot be used in conditions.", at)
        entries = [_message(each) for each in inner.get(2, ())]
        return Node(MAP, None, tuple(_node(entry[part][0], places) for entry in entries for part in (3, 4)), at)
    kind, name, parts = _KINDS[number]
    below = tuple(_node(each, places) for part in parts for each in inner.get(part, ()))
    if kind == MEMBER:
        kind, at = HAS if 3 in inner else kind, at + 1  # CEL gives the position of the dot.
    return Node(kind, inner[name][0].decode() if name else None, below, at)


def _message(data: bytes) -> dict[int, list[Any]]:
    """Return the values of a protobuf message, listed by field number. Varints are integers; all others are bytes."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value: Any
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            length, at = (8, at) if key & 7 == 1 else _varint(data, at)
            value, at = data[at : at + length], at + length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer that begins at `at`, and the position after it."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def arguments_in(tree: Node) -> dict[str, int] | None:
    """Return the arguments that a condition names (`args.name`, `args['name']`), each with its position.

    Return None if the condition may also use arguments that it does not name, as in `args[tool.name]`.
    """
    found: dict[str, int] = {}
    for name, at in _arguments(tree):
        if name is None:
            return None
        found.setdefault(name, at)
    return found


def _arguments(node: Node) -> Iterator[tuple[str | None, int]]:
    first = node.parts[0] if node.parts else None
    if first is None or (first.kind, first.value) != (NAME, ARGUMENTS):
        if (node.kind, node.value) == (NAME, ARGUMENTS) or (node.kind == LOOP and node.value == ARGUMENTS):
            yield None, node.at
        rest = node.parts
    elif node.kind in (MEMBER, HAS):
        yield node.value, node.at
        rest = ()
    else:
        is_named = (node.kind, node.value) == (CALL, "_[_]") and node.parts[1].kind == CONSTANT
        yield (node.parts[1].value if is_named else None), node.parts[-1].at
        rest = node.parts[1:]
    for part in rest:
        yield from _arguments(part)


def needed_by(tree: Node) -> frozenset[str]:
    """Return arguments that the condition requires: if one of them is absent, the call does not meet the condition.

    The set may be incomplete, because the condition is not evaluated here.
    """
    if (tree.kind, tree.value) == (CALL, "_&&_"):
        return needed_by(tree.parts[0])  # If the left part has no result, the right part does not matter.
    return _absent(tree)


def _absent(node: Node) -> frozenset[str]:
    """Return arguments that this part needs: if one of them is absent, evaluating the part always fails."""
    if node.kind in (NAME, CONSTANT, LIST, MAP):
        return frozenset()
    first, *rest = node.parts
    if (first.kind, first.value) == (NAME, ARGUMENTS):
        named = next(_arguments(node))[0] if node.kind == MEMBER or node.value == "_[_]" else None
        return frozenset() if named is None else frozenset((named,))
    if node.kind != CALL or node.value == "_?_:_":
        return _absent(first)
    if node.value in ("_||_", "_&&_"):
        return _absent(first) & _absent(rest[0])
    return next((_absent(part) for part in node.parts if part.kind not in (NAME, CONSTANT)), frozenset())
