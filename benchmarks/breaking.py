"""Valid files broken at random: bytes anywhere, or values of what the form of the file lets one see.

Bytes that are broken anywhere mostly end at the first check that a form has for them. So half of the files of a form
that is known here are broken in a value (JSON, TOML, SQL, the header of safetensors), keep their size (archives and
databases), or get the checksums of their new bytes (tar, PNG): what lies behind those checks is tried, too.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import tomllib
import zlib
from collections.abc import Callable
from typing import Any

_PIECES = [
    *(b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"-1", b"1e999", b"NaN", b"\n", b'"', b"{"),
    *(b"[" * 50, b"[" * 20_000, b"9" * 400, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"../", b"\r\n\r"),
]
_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 255, 1 << 31, 1 << 63, 1 << 70, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *("", "x", "0", "../../x", "/etc/hostname", "\0", "\ud800", "é" * 300, [], [[]], [None], {}, {"": 0}, [1] * 300),
]
_SQL = [
    *("select", "from", "union all", "group by", "order by", "limit", "where", "unnest", "pivot", "lateral", "over ()"),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        ",",
        "*",
        "::",
        "->",
        "null",
        "1e400",
        "-1",
        "prompts",
        "pieces",
        "label",
    ),
    *("read_csv('/etc/passwd')", "repeat('x', 1000)", "range(1000)", "cast(label as blob)", "pooled", "list_sort"),
    *("with recursive t as (select 1)", "summarize", "describe", "copy", "attach", "set", "pragma", ";", "--", "\0"),
]
_KEEP_THEIR_SIZE = (".tar", ".mdb", ".lmdb", ".parquet", ".zip", ".arrow", ".listing", ".npy", ".ttf", ".otf", ".png")


def mutated(data: bytes, generator: random.Random, suffix: str = "") -> bytes:
    """Return ``data`` broken in one to eight places."""
    by_form: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".json": _json,
        ".jsonl": _json_line,
        ".toml": _toml,
        ".sql": _sql,
        ".safetensors": _header,
        ".tar": lambda tar, chance: _summed_tar(_bytes(tar, chance, keep_size=True)),
        ".png": lambda png, chance: _summed_png(_bytes(png, chance, keep_size=True)),
    }
    if suffix in by_form and generator.random() < 0.5:
        return by_form[suffix](data, generator)
    if suffix in (".json", ".toml"):
        data = _unsealed(data)
    return _bytes(data, generator, suffix in _KEEP_THEIR_SIZE and generator.random() < 0.5)


def _bytes(data: bytes, generator: random.Random, keep_size: bool) -> bytes:
    """Bits flipped, pieces replaced, and without ``keep_size`` also cut, doubled, and moved."""
    broken = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 8))):
        at = generator.randrange(len(broken) + 1)
        piece = bytes(broken[at : at + generator.choice((1, 4, 16, 200))])
        match generator.randrange(3) if keep_size else generator.randrange(7):
            case 0 if at < len(broken):
                broken[at] ^= 1 << generator.randrange(8)
            case 1:
                new = generator.choice([generator.randbytes(4), *_PIECES[:4]])[: len(broken) - at]
                broken[at : at + len(new)] = new
            case 2:
                elsewhere = generator.randrange(len(broken) + 1)
                broken[elsewhere : elsewhere + len(piece)] = piece[: len(broken) - elsewhere]
            case 3:
                del broken[at : at + len(piece)]
            case 4:
                broken[at:at] = piece * generator.choice((1, 2, 100))
            case 5:
                broken[at:at] = generator.choice(_PIECES)
            case 6 if generator.random() < 0.2:
                del broken[at:]
    return bytes(broken)


def _unsealed(data: bytes) -> bytes:
    at = data.rfind(b"dptr-sha256:")
    return data if at < 0 else data[:at] + data[at + 76 :]


def _json(data: bytes, generator: random.Random) -> bytes:
    value = [json.loads(data)]
    for _ in range(generator.choice((1, 1, 2, 4))):
        if containers := list(_containers(value)):
            _change(generator.choice(containers), generator)
    return json.dumps(value[0] if value else None).encode("utf-8", "surrogatepass")


def _json_line(data: bytes, generator: random.Random) -> bytes:
    lines = data.split(b"\n")
    number = generator.choice([number for number, line in enumerate(lines) if line.strip()])
    lines[number] = _json(lines[number], generator)
    return b"\n".join(lines)


def _containers(value: Any) -> Any:
    """Yield all objects and lists that hold something."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _change(container: Any, generator: random.Random) -> None:
    """Replace, remove, double or rename one of the values of an object or a list."""
    places = list(container) if isinstance(container, dict) else range(len(container))
    place = generator.choice(places)
    match generator.randrange(5):
        case 0:
            del container[place]
        case 1 if isinstance(container, dict):
            container[generator.choice([*container, f"{place}x", ""])] = container.pop(place)
        case 1 | 2:
            other = container[
                generator.choice(list(container) if isinstance(container, dict) else range(len(container)))
            ]
            container[place] = [other] if generator.random() < 0.3 else json.loads(json.dumps(other))
        case _:
            old = container[place]
            near = [old + 1, -old, old * 1000] if isinstance(old, int | float) and generator.random() < 0.5 else _VALUES
            container[place] = copy.deepcopy(generator.choice(near))


def _toml(data: bytes, generator: random.Random) -> bytes:
    """Change lines of a table: their values, or the lines as a whole."""
    lines = data.decode().splitlines()
    for _ in range(generator.choice((1, 1, 2, 4))):
        number = generator.randrange(len(lines))
        key, equals, _ = lines[number].partition(" = ")
        match generator.randrange(4):
            case 0:
                lines[number] = generator.choice(lines)
            case 1:
                lines.insert(number, generator.choice(lines))
            case _ if equals:
                lines[number] = f"{key} = {_toml_value(generator.choice(_VALUES))}"
            case _ if lines[number].startswith("["):
                lines[number] = generator.choice(("[x]", "[[decoder]]", "[a.b.c]", '["../x"]', lines[number] + "x"))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True).replace("NaN", "nan").replace("null", '""')
    try:
        tomllib.loads(f"x = {text}")
    except ValueError:
        return "{}"
    return text


def _sql(data: bytes, generator: random.Random) -> bytes:
    tokens = re.findall(r"\w+|\s+|[^\w\s]", data.decode())
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(len(tokens))
        tokens[at : at + generator.choice((0, 1, 1, 3))] = [
            *(generator.choice([[generator.choice(_SQL)], [generator.choice(tokens)], tokens[at : at + 9]])),
            " ",
        ]
    return "".join(tokens).encode("utf-8", "surrogatepass")


def _header(data: bytes, generator: random.Random) -> bytes:
    """Change values of a safetensors file's header, which begins with its length."""
    (length,) = struct.unpack_from("<Q", data)
    header = _json(data[8 : 8 + length], generator)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _summed_tar(data: bytes) -> bytes:
    """Give each header of an archive the checksum of its bytes."""
    broken, at = bytearray(data), 0
    while at + 512 <= len(broken) and broken[at] != 0:
        broken[at + 148 : at + 156] = b" " * 8
        broken[at + 148 : at + 156] = b"%06o\0 " % (sum(broken[at : at + 512]) & 0o777777)
        digits = bytes(broken[at + 124 : at + 135]).strip(b"\0 ")
        if not re.fullmatch(rb"[0-7]+", digits):
            break
        at += 512 + -(-int(digits, 8) // 512) * 512
    return bytes(broken)


def _summed_png(data: bytes) -> bytes:
    """Give each chunk of a picture the checksum of its bytes."""
    broken, at = bytearray(data), 8
    while at + 12 <= len(broken):
        (length,) = struct.unpack_from(">I", broken, at)
        end = at + 8 + length
        if end + 4 > len(broken):
            break
        struct.pack_into(">I", broken, end, zlib.crc32(broken[at + 4 : end]))
        at = end + 4
    return bytes(broken)
