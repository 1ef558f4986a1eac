"""Mutation that knows what it damages: protobuf messages, JSON, .npy and .npz, safetensors, bytes.

Blind flips die in the outer parser. Here most changes keep the outer form whole and put an odd
number, a name from elsewhere or a missing part inside, so that what lies behind is reached too.
All chances come from one `random.Random`: an input is made again from its number.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Mutate = Callable[[bytes, Random], bytes]

MOST_BYTES = 1 << 16
"""No input grows beyond this: what costs more than it must is then the reader's doing."""

CANARY = "blockfold_canary:attribute"
"""Code of the user's that no file may reach; the watch in campaign.py knows its name."""

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 256, 1025, 65536, 10**6, 2**31 - 1, 2**31, -(2**31))
LARGE = (2**32, 2**40, 10**12, 2**63 - 1, -(2**63))
REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, 1e308, float("inf"), float("nan"))
WORDS = (
    "",
    "x",
    ".",
    "..",
    "../secret",
    "sub/../../secret",
    "link",
    "weights",
    "/etc/passwd",
    "\0",
    "\x1b[31m",
    "[/bold]",
    "{}",
    "(" * 200,
    "é" * 50,
    "a" * 2000,
    "float16",
    "ai.onnx",
    "com.microsoft",
    CANARY,
)


def flip(content: bytes, rng: Random) -> bytes:
    """Bytes changed, cut out, doubled or cut off."""
    data = bytearray(content or b"\0")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) or 1)
        size = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f")) * size
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)] if data else b"")
            case _:
                del data[at:]
    return bytes(data[:MOST_BYTES])


# --- protobuf


def model(content: bytes, rng: Random) -> bytes:
    """An ONNX model with some fields changed; now and then with damaged bytes as well."""
    if rng.random() < 0.05:
        return flip(content, rng)
    proto = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _edit(proto, rng)
    made = proto.SerializeToString()
    if len(made) > MOST_BYTES:
        return content
    return flip(made, rng) if rng.random() < 0.05 else made


def _messages(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    if depth > 40:
        return
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                yield from _messages(inner, depth + 1)


def _edit(root: Message, rng: Random) -> None:
    everywhere = list(_messages(root))
    message = rng.choice(everywhere)
    fields: list[Any] = [field for field, _ in message.ListFields()]
    if not fields or rng.random() < 0.3:
        fields = list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    try:
        if field.is_repeated:
            _edit_list(getattr(message, field.name), field, everywhere, rng)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _edit_message(message, field, everywhere, rng)
        elif rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            old = getattr(message, field.name)
            setattr(message, field.name, _scalar(field, old, everywhere, rng))
    except (ValueError, TypeError):  # an enum takes no unknown number, 32 bits no large one
        pass


def _edit_message(
    message: Message, field: FieldDescriptor, everywhere: list[Message], rng: Random
) -> None:
    alike = [m for m in everywhere if m.DESCRIPTOR is field.message_type]
    if alike and rng.random() < 0.7:
        getattr(message, field.name).CopyFrom(_copy(rng.choice(alike)))
    elif rng.random() < 0.5:
        message.ClearField(field.name)
    else:
        getattr(message, field.name).SetInParent()


def _copy(message: Message) -> Message:
    """A message that may be put inside the very one it was copied from."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def _edit_list(items: Any, field: FieldDescriptor, everywhere: list[Message], rng: Random) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    choice = rng.randrange(4)
    if choice == 0 and items:
        del items[rng.randrange(len(items))]
    elif choice == 1 and len(items) > 1:
        a, b = rng.sample(range(len(items)), 2)
        if is_message:
            one, other = _copy(items[a]), _copy(items[b])
            items[a].CopyFrom(other)
            items[b].CopyFrom(one)
        else:
            items[a], items[b] = items[b], items[a]
    elif is_message:
        alike = [m for m in everywhere if m.DESCRIPTOR is field.message_type]
        if alike and rng.random() < 0.8:
            copy = _copy(rng.choice(alike))
            items.add().CopyFrom(copy)
        else:
            items.add()
    elif choice == 2 and items:
        at = rng.randrange(len(items))
        items[at] = _scalar(field, items[at], everywhere, rng)
    else:
        items.append(_scalar(field, items[0] if items else None, everywhere, rng))


def _scalar(field: FieldDescriptor, old: Any, everywhere: list[Message], rng: Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(WORDS) if rng.random() < 0.3 else rng.choice(_names(everywhere))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return flip(old or b"", rng) if rng.random() < 0.8 else b""
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(REALS)
    if field.enum_type is not None:
        return rng.choice(field.enum_type.values).number
    nearby = (old or 0) + rng.randint(-2, 2)
    return nearby if rng.random() < 0.4 else rng.choice(NUMBERS + LARGE)


def _names(everywhere: list[Message]) -> list[str]:
    """Values, operators and attributes that the model itself names."""
    found = [""]
    for message in everywhere:
        if isinstance(message, onnx.NodeProto):
            found += [*message.input, *message.output, message.op_type]
        elif isinstance(message, onnx.AttributeProto | onnx.ValueInfoProto):
            found.append(message.name)
    return found


# --- JSON


def document(content: bytes, rng: Random) -> bytes:
    """A JSON document with some values changed, moved, dropped or added."""
    if rng.random() < 0.1:
        return flip(content, rng)
    root = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _edit_json(root, rng)
    return json.dumps(root).encode()[:MOST_BYTES]


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _edit_json(root: Any, rng: Random) -> None:
    everywhere = list(_containers(root))
    if not everywhere:
        return
    place = rng.choice(everywhere)
    key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    match rng.randrange(8):
        case 0:
            del place[key]
        case 1:
            if isinstance(place, dict):
                place[rng.choice(WORDS)] = place[key]
            else:
                place.append(json.loads(json.dumps(place[key])))
        case 2:
            other = rng.choice(everywhere)
            values = list(other.values()) if isinstance(other, dict) else other
            place[key] = json.loads(json.dumps(rng.choice(values) if values else None))
        case 3:
            place[key] = json.loads("[" * 150 + "]" * 150)
        case _:
            place[key] = _like(place[key], rng)


def _like(old: Any, rng: Random) -> Any:
    """Mostly a value of the same kind."""
    if rng.random() < 0.15:
        old = rng.choice((None, True, "", 0, 0.5, [], {}))
    if isinstance(old, bool) or old is None:
        return rng.choice((None, True, False))
    if isinstance(old, int):
        return rng.choice((old + rng.randint(-2, 2), rng.choice(NUMBERS + LARGE), 10**30))
    if isinstance(old, float):
        return rng.choice(REALS)
    if isinstance(old, str):
        return rng.choice(WORDS)
    return rng.choice(([], {}, [0], {"x": 1}))


# --- arrays

DESCRIPTIONS = (
    *("<f4 <f8 <f2 >f4 <i8 <i4 |i1 |u1 <u8 |b1 |O <c8 <M8[D] <U3 <U0 <U100000000 |S0 |V0".split()),
    "('<f4', (3,))",
    "[('a', '<f4')]",
    "[('a', '|O')]",
)
SHAPES = (
    "()",
    "(0,)",
    "(5,)",
    "(5, 3)",
    "(5, 0)",
    "(3, 5)",
    "(-1, 3)",
    "(True, 3)",
    "(1000000000000, 3)",
    "(1000000000000, 0)",
    "(2**70, 3)",
    "(9223372036854775807, 9223372036854775807)",
    "(5, 3, 1)",
    "(1,)*40",
    "(5.0, 3)",
    "[5, 3]",
)


def npy(content: bytes, rng: Random) -> bytes:
    """A .npy file whose header tells something else."""
    if rng.random() < 0.2 or len(content) < 12:
        return flip(content, rng)
    size = int.from_bytes(content[8:10], "little")
    body = content[10 + size :]
    text = content[10 : 10 + size].decode("latin1", "replace")
    start, _, rest = text.partition("'shape':")
    if rng.random() < 0.5:
        text = f"{start}'shape': {rng.choice(SHAPES)}, }}\n"
    if rng.random() < 0.5:
        chosen = rng.choice(DESCRIPTIONS)
        said = chosen if chosen[0] in "[(" else repr(chosen)
        _, _, after = text.partition(", 'fortran_order'")
        text = f"{{'descr': {said}, 'fortran_order'{after}"
    if rng.random() < 0.2:
        text = text.replace("False", "True")
    if rng.random() < 0.05:
        text = rng.choice(("{" * 3000, "(" * 5000, "-" * 9000 + "1", "{}", "[]", rest))
    head = text.encode("latin1", "replace")
    if rng.random() < 0.2:
        length = rng.choice((len(head), 0, 2**32 - 1, 2**31, 10**6))
        return b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + head + body
    length = rng.choice((len(head), len(head), len(head), 65535, 3)) & 0xFFFF
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + head + body


METHODS = (*[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 10, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def npz(content: bytes, rng: Random) -> bytes:
    """An .npz with members changed, renamed, dropped, doubled or packed otherwise."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(members))
        name, body = members[at]
        match rng.randrange(8):
            case 0:
                members.append((rng.choice(members)[0], body))
            case 1 if len(members) > 1:
                del members[at]
            case 2:
                name = rng.choice((*WORDS, "groups.npy", "labels.npy", "x", "/x.npy", "x.npy/"))
                members[at] = (name.replace("\0", "0"), body)
            case _:
                members[at] = (name, npy(body, rng))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, body in members:
            archive.writestr(zipfile.ZipInfo(name or "_"), body, rng.choice(METHODS))
    made = stream.getvalue()
    return flip(made, rng) if rng.random() < 0.3 else made


def tensors(content: bytes, rng: Random) -> bytes:
    """A safetensors file whose header tells something else."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        return flip(content, rng)
    body = content[8 + size :]
    head = document(content[8 : 8 + size], rng)
    if rng.random() < 0.3:
        kinds = ("F64", "F32", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "F4", "C64", "?")
        head = head.replace(b"F64", rng.choice(kinds).encode())
    if rng.random() < 0.3:
        body = flip(body, rng)
    length = len(head) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**31, len(head) + 1))
    return length.to_bytes(8, "little") + head + body


def statistics(content: bytes, rng: Random) -> bytes:
    """As `tensors`, or a file whose record, JSON in the header, tells something else."""
    if rng.random() < 0.4:
        return tensors(content, rng)
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    record = head["__metadata__"]
    for name, text in record.items():
        record[name] = document(text.encode(), rng).decode("utf-8", "replace")
    made = json.dumps(head).encode()
    return len(made).to_bytes(8, "little") + made + content[8 + size :]
