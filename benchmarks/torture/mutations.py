"""Seeded mutations of files: of their bytes, and of documents and archives with their form kept."""

from __future__ import annotations

import io
import json
import reprlib
import struct
import tarfile
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = [
    "mutate_bytes",
    "mutate_json",
    "mutate_npy",
    "mutate_safetensors",
    "mutate_tar",
    "mutate_text",
    "mutate_zip",
]

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def mutate_bytes(content: bytes, other: bytes, random: Random) -> bytes:
    """One to four faults: flipped bits, a cut, a splice from ``other``, a doubled or blank part, an edge."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(data) + 1)
        length = min(len(data) - place, 1 << random.randrange(12))
        match random.randrange(7):
            case 0 | 1:
                for _ in range(random.choice((1, 1, 2, 8))):
                    if data:
                        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            case 2:
                del data[place:]
            case 3:
                start = random.randrange(len(other) + 1)
                data[place : place + length] = other[start : start + length]
            case 4:
                data[place:place] = data[place : place + length] * random.choice((1, 2, 64))
            case 5:
                data[place : place + length] = bytes([random.choice((0, 0xFF, 0x20))]) * length
            case _:
                size = random.choice((1, 2, 4, 8))
                value = random.choice(EDGES) % (1 << 8 * size)
                data[place : place + size] = value.to_bytes(size, random.choice(("little", "big")))
    return bytes(data)


WORDS = (
    "null",
    "true",
    "[]",
    "{}",
    '""',
    "-1",
    "0",
    "1e400",
    "NaN",
    "-Infinity",
    "9" * 5000,
    "1" + "0" * 30,
    "0.1e-999",
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[31m"',
    '"::error::"',
    "[" * 500 + "]" * 500,
    '{"a":' * 200 + "1" + "}" * 200,
    "[1, [2, {}]]",
    '"../../etc/passwd"',
    '"/dev/zero"',
    "1999-13-45",
    "inf",
    "'a'",
    "0xffffffffffffffffff",
)


def mutate_text(content: bytes, other: bytes, random: Random) -> bytes:
    """A document with one to three of its words, values or lines exchanged, dropped or doubled."""
    lines = content.decode("utf-8", "replace").splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 2, 3))):
        if not lines:
            break
        number = random.randrange(len(lines))
        line = lines[number]
        match random.randrange(5):
            case 0:
                del lines[number]
            case 1:
                lines.insert(random.randrange(len(lines) + 1), line)
            case 2:
                words = line.split()
                if words:
                    words[random.randrange(len(words))] = random.choice(WORDS)
                lines[number] = " ".join(words) + "\n"
            case 3:
                key, separator, _ = line.partition("=" if "=" in line else ":")
                lines[number] = f"{key}{separator} {random.choice(WORDS)}\n"
            case _:
                place = random.randrange(len(line) + 1)
                lines[number] = (
                    line[:place]
                    + random.choice(('"', "[", "]", "{", "}", ".", "=", ",", "\x00"))
                    + line[place:]
                )
    return "".join(lines).encode("utf-8", "replace")


def odd_value(random: Random, old: Any) -> Any:
    """A value of another type, an edge of its own type, or itself wrapped in something."""
    values: list[Any] = [
        None,
        True,
        [],
        {},
        "",
        -1,
        0,
        2**31,
        2**63,
        2**64,
        10**30,
        1.5,
        float("nan"),
        float("inf"),
        "x" * 10_000,
        "../../etc/passwd",
        "/dev/zero",
        "\x1b]0;title\x07",
        "a\n::error::b",
        [old],
        {"a": old},
        [old] * 3,
        _text(old),
    ]
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        values += [-old, old + 1, old * 1000] * 3
    return random.choice(values)


def _text(value: Any) -> str:
    try:
        return str(value)
    except RecursionError:  # an earlier mutation nested it deeply
        return reprlib.repr(value)


def mutate_json(content: bytes, other: bytes, random: Random) -> bytes:
    """A JSON document with one to three of its values or keys exchanged, dropped, doubled or nested."""
    document = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        parts = [part for part in _parts(document) if part]
        if not parts:
            break
        part = random.choice(parts)
        key = random.choice(list(part)) if isinstance(part, dict) else random.randrange(len(part))
        match random.randrange(6):
            case 0:
                del part[key]
            case 1 if isinstance(part, dict):
                part[random.choice((f"{key}x", "", "\x1b[31m", "__class__"))] = part.pop(key)
            case 1:
                part.append(part[key])
            case 2:
                for _ in range(random.choice((3, 70, 900))):
                    part[key] = random.choice(([part[key]], {"a": part[key]}))
            case _:
                part[key] = odd_value(random, part[key])
    return _dumped(document).encode()


def _dumped(document: Any) -> str:
    try:
        return json.dumps(document)
    except (RecursionError, ValueError):
        return "[" * 5000


def _parts(document: Any) -> list[Any]:
    """All objects and arrays of a document."""
    found, waiting = [], [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            found.append(value)
            waiting += value.values() if isinstance(value, dict) else value
    return found


def mutate_npy(content: bytes, other: bytes, random: Random) -> bytes:
    """An ``.npy`` file whose header says something else than what it holds."""
    length = struct.unpack_from("<H", content, 8)[0]
    header = content[10 : 10 + length].decode("latin-1")
    changes: list[Callable[[str], str]] = [
        lambda h: h.replace("False", "True"),
        lambda h: h.replace(
            "<f4",
            random.choice(("<f8", "|O", ">i2", "<U7", "|S0", "<M8[s]", "|b1", "<c16", "|V8", "nonsense")),
        ),
        lambda h: h.replace("shape': (", f"shape': ({random.choice(EDGES)}, "),
        lambda h: h.replace("shape': (", "shape': (-1, "),
        lambda h: h.replace("shape': (", "shape': (" + "1, " * random.choice((3, 40, 400))),
        lambda h: h.replace("}", "'extra': 1}"),
        lambda h: h.replace("'descr'", "'desc'"),
        lambda h: "(" * random.choice((10, 3000)) + h,
    ]
    header = random.choice(changes)(header)
    encoded = header.encode("latin-1")[:65535]
    return content[:8] + struct.pack("<H", len(encoded)) + encoded + content[10 + length :]


Inner = Callable[[bytes, bytes, Random], bytes]


def mutate_zip(content: bytes, other: bytes, random: Random, inner: Inner = mutate_bytes) -> bytes:
    """A zip with right checksums, of which a member is mutated, renamed, doubled or left out."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    number = random.randrange(len(members))
    name, data = members[number]
    match random.randrange(6):
        case 0:
            del members[number]
        case 1:
            members.append(
                (
                    random.choice((name, "", "../out.npy", "/etc/x.png", "x" * 3000, "cat", "a/b/c/d.png")),
                    data,
                )
            )
        case 2:
            members[number] = (name, bytes(random.choice((0, 1, 1 << 20, 1 << 24))))
        case _:
            members[number] = (name, inner(data, other, random))
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def mutate_tar(content: bytes, other: bytes, random: Random) -> bytes:
    """A tar whose members are mutated, or whose headers (with right checksums) claim something else."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(entry, archive.extractfile(entry).read()) for entry in archive if entry.isfile()]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    changed = random.randrange(len(members))
    for number, (entry, data) in enumerate(members):
        if number == changed:
            match random.randrange(5):
                case 0:
                    continue
                case 1:
                    entry.size = random.choice(EDGES)
                case 2:
                    entry.type = random.choice(
                        (
                            tarfile.SYMTYPE,
                            tarfile.LNKTYPE,
                            tarfile.FIFOTYPE,
                            tarfile.CHRTYPE,
                            tarfile.GNUTYPE_SPARSE,
                            tarfile.XHDTYPE,
                            tarfile.GNUTYPE_LONGNAME,
                        )
                    )
                    entry.linkname = "/etc/passwd"
                case 3:
                    entry.pax_headers = {"size": random.choice(("-1", "x", "9" * 5000)), "path": entry.name}
                case _:
                    data = mutate_bytes(data, other, random)
                    entry.size = len(data)
        buffer.write(entry.tobuf(random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))))
        buffer.write(data + bytes(-len(data) % 512))
    return buffer.getvalue() + bytes(1024)


def mutate_safetensors(content: bytes, other: bytes, random: Random) -> bytes:
    """A safetensors file whose header, of the right length, is a mutated document."""
    length = struct.unpack_from("<Q", content)[0]
    header = mutate_json(content[8 : 8 + length], other, random)
    if random.random() < 0.3:
        header = header.replace(
            b'"F32"', random.choice((b'"BF16"', b'"F8_E4M3"', b'"F64"', b'"I8"', b'"BOOL"', b'"X"'))
        )
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
