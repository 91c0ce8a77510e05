"""Flatbuffers by a schema given as data; no package has code for the schema needed here."""

import struct
from typing import Any

import flatbuffers


def pack(schema: dict, kind: str, fields: dict[str, Any], identifier: bytes) -> bytes:
    """The flatbuffer of a nested dict.

    Args:
        schema: for each kind of table its fields in the order of their slots, each with its type:
            `str`; `int`, of one byte; the kind of a table; a list of one of these or of `float`
            for a vector; a dict from numbers to kinds for a union, selected by the field
            `<name>_type`.
        kind: the root's kind.
        fields: the root's fields; missing ones and None are left out.
        identifier: the file identifier, four bytes.
    """
    builder = flatbuffers.Builder()
    builder.Finish(_pack_table(builder, schema, kind, fields), identifier)
    return bytes(builder.Output())


def _pack_table(builder, schema, kind, fields):
    slots, ready = schema[kind], {}
    for name, of in slots.items():
        if fields.get(name) is not None:
            of = of[fields[f"{name}_type"]] if isinstance(of, dict) else of
            ready[name] = _pack(builder, schema, of, fields[name])
    builder.StartObject(len(slots))
    for slot, (name, of) in enumerate(slots.items()):
        if name in ready:
            add = builder.PrependByteSlot if of is int else builder.PrependUOffsetTRelativeSlot
            add(slot, ready[name], 0)
    return builder.EndObject()


def _pack(builder, schema, of, value):
    if of is int:
        return value
    if of is str:
        return builder.CreateString(value)
    if of == [float]:
        return _pack_vector(builder, value, builder.PrependFloat32)
    if isinstance(of, list):
        items = [_pack(builder, schema, of[0], item) for item in value]
        return _pack_vector(builder, items, builder.PrependUOffsetTRelative)
    return _pack_table(builder, schema, of, value)


def _pack_vector(builder, items, prepend):
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        prepend(item)
    return builder.EndVector()


def unpack(schema: dict, kind: str, data: bytes, table: int | None = None) -> dict[str, Any]:
    """The inverse of `pack`; fields that the schema does not have are skipped.

    Args:
        table: the offset of the table in `data`; by default the root's.
    """
    table = _target(data, 0) if table is None else table
    found: dict[str, Any] = {}
    for slot, (name, of) in enumerate(schema[kind].items()):
        at = _field(data, table, slot)
        of = of.get(found.get(f"{name}_type")) if isinstance(of, dict) else of
        if at is not None and of is not None:
            found[name] = _unpack(schema, of, data, at)
    return found


def _unpack(schema, of, data, at):
    if of is int:
        return data[at]
    if of is float:
        return _number(data, at, "f")
    if isinstance(of, list):
        return [_unpack(schema, of[0], data, item) for item in _items(data, at)]
    if of is str:
        return _bytes(data, at).decode("utf-8")
    return unpack(schema, of, data, _target(data, at))


def _number(data, at, kind="I"):
    return struct.unpack_from(f"<{kind}", data, at)[0]


def _target(data, at):
    """The offset that a reference points to."""
    return at + _number(data, at)


def _field(data, table, slot):
    """The offset of a table's field; None: the table does not have it."""
    vtable = table - _number(data, table, "i")
    at = 4 + 2 * slot
    at = _number(data, vtable + at, "H") if at < _number(data, vtable, "H") else 0
    return table + at if at else None


def _items(data, at):
    """The offsets of a vector's items, four bytes each; `at`: a reference to the vector."""
    start = _target(data, at) + 4
    return range(start, start + 4 * _number(data, start - 4), 4)


def _bytes(data, at):
    """A vector of bytes; `at`: a reference to the vector."""
    start = _target(data, at) + 4
    return bytes(data[start : start + _number(data, start - 4)])
