"""Flatbuffers by a schema that is data; one more named buffer for a TFLite file of any size.

In a flatbuffer all references point forward, by a distance in bytes. So a new root with new tables
can stand before an old file, which stays as it is, in one piece.
"""

import io
import struct

import flatbuffers

TFLITE = b"TFL3"
ALIGNMENT = 64  # bytes; the schema of TFLite asks for 16: its tensors are mapped into memory
# Slots of the tables of that schema.
VERSION, BUFFERS, ENTRIES, FIELDS = 0, 4, 6, 10  # of Model; all but the version are references
DATA, OFFSET = 0, 1  # of Buffer
NAME, INDEX = 0, 1  # of Metadata, the entries that give a buffer a name


def pack(schema, kind, fields, identifier):
    """The flatbuffer of a nested dict.

    Args:
        schema: of each kind of table the fields in the order of their slots, each with its type:
            `str`; `int`, of one byte; the kind of a table; a list of one of these or of `float`:
            a vector; a dict from numbers to kinds: a union, which the field `<name>_type` decides.
        kind: of the root.
        fields: those of the root; what is missing or None is left out.
        identifier: the file's, four bytes.
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


def _pack_vector(builder, items, prepend, size=4, alignment=4):
    builder.StartVector(size, len(items), alignment)
    for item in reversed(items):
        prepend(item)
    return builder.EndVector()


def unpack(schema, kind, data, table=None):
    """The inverse of `pack`; fields that the schema has not are passed over.

    Args:
        table: where in `data` the table begins; by default the root.
    """
    table = _target(data, 0) if table is None else table
    found = {}
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
    """Where a reference leads."""
    return at + _number(data, at)


def _field(data, table, slot):
    """Where a field of a table lies; None: the table has none."""
    vtable = table - _number(data, table, "i")
    at = 4 + 2 * slot
    at = _number(data, vtable + at, "H") if at < _number(data, vtable, "H") else 0
    return table + at if at else None


def _items(data, at):
    """Where the items of a vector lie, of four bytes each; `at`: a reference to it."""
    start = _target(data, at) + 4
    return range(start, start + 4 * _number(data, start - 4), 4)


def _bytes(data, at):
    """A vector of bytes; `at`: a reference to it."""
    start = _target(data, at) + 4
    return bytes(data[start : start + _number(data, start - 4)])


def _vector(data, table, slot):
    """The tables of a vector of a table."""
    at = _field(data, table, slot)
    return [_target(data, item) for item in _items(data, at)] if at else []


def root(content):
    """Where the root of a TFLite file begins.

    Raises:
        ValueError: not a TFLite file.
    """
    if content[4:8] != TFLITE:
        raise ValueError(f"Not a TFLite file: it begins with {bytes(content[:8])!r}.")
    return _target(content, 0)


def buffer(content, name):
    """The bytes of a file's buffer of that name, or None."""
    model = root(content)
    for entry in _vector(content, model, ENTRIES):
        if _bytes(content, _field(content, entry, NAME)) == name.encode():
            index = _number(content, _field(content, entry, INDEX))
            table = _vector(content, model, BUFFERS)[index]
            return _bytes(content, _field(content, table, DATA))
    return None


def with_buffer(content, name, data):
    """A TFLite file with one more named buffer: an `io.BytesIO`, at its end.

    Nothing is unpacked: it takes the time and the memory of one copy.

    Raises:
        ValueError: not a TFLite file, or of a schema that is newer than this package.
    """
    head = _head(content, root(content), name, data)
    file = io.BytesIO()
    file.write(head)
    file.write(content)
    with file.getbuffer() as whole:
        for table in _vector(whole, root(whole), BUFFERS):
            # Above 2 GB the converter puts data behind the flatbuffer: counted from the start.
            at = _field(whole, table, OFFSET)
            if at and _number(whole, at, "Q") > 1:
                struct.pack_into("<Q", whole, at, _number(whole, at, "Q") + len(head))
    return file


def _head(content, model, name, data):
    """What goes before a file: its new root, the new buffer and the buffer's entry."""
    vtable = model - _number(content, model, "i")
    if _number(content, vtable, "H") > 4 + 2 * FIELDS:
        raise ValueError("This TFLite file is of a schema that is newer than this package.")
    old = {slot: _vector(content, model, slot) for slot in (BUFFERS, ENTRIES)}
    builder = flatbuffers.Builder()
    builder.Prep(ALIGNMENT, 0)  # the whole becomes a multiple of it
    vector = _pack_vector(builder, data, builder.PrependByte, 1, 16)
    title = builder.CreateString(name)
    builder.StartObject(DATA + 1)
    builder.PrependUOffsetTRelativeSlot(DATA, vector, 0)
    new = {BUFFERS: builder.EndObject()}
    builder.StartObject(INDEX + 1)
    builder.PrependUOffsetTRelativeSlot(NAME, title, 0)
    builder.PrependUint32Slot(INDEX, len(old[BUFFERS]), 0)
    new[ENTRIES] = builder.EndObject()
    # References into the old file hold the place there, until the distance is known.
    for slot, tables in old.items():
        builder.StartVector(4, len(tables) + 1, 4)
        builder.PrependUOffsetTRelative(new[slot])
        for table in reversed(tables):
            builder.PrependUint32(table)
        new[slot] = builder.EndVector()
    builder.StartObject(FIELDS)
    for slot in range(FIELDS):
        at = _field(content, model, slot)
        if slot in new:
            builder.PrependUOffsetTRelativeSlot(slot, new[slot], 0)
        elif at:
            place = (_number if slot == VERSION else _target)(content, at)
            builder.PrependUint32Slot(slot, place, 0)
    builder.Finish(builder.EndObject(), TFLITE)
    head = builder.Output()
    model = root(head)
    places = [_field(head, model, slot) for slot in range(FIELDS) if slot not in (VERSION, *old)]
    for slot in old:
        places += _items(head, _field(head, model, slot))[:-1]
    for at in filter(None, places):
        struct.pack_into("<I", head, at, len(head) - at + _number(head, at))
    return head
