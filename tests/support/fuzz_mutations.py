"""Damage for files: small pure functions from something intact and a generator to something not.

Three levels: the bytes, the JSON data of a description, and the arrays beside it. Every function
returns what it did, as text, so that a report says more than a number.
"""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from soul_deploy.base import Array

Rng = np.random.Generator
Tensors = dict[str, Array]

DEEP = "<nested>"
"""Stands for a list nested 900 deep, which copying and printing could not take."""

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 255, 256, 65536, 10**30),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(0.0, -0.0, 0.5, -1.0, 1e-46, 1e39, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "input", "..", "a..b", "\0", "é" * 40, "forward", "training"),
    *([], {}, [[]], [0], [1, 1], [1, 1, 1], [0, 0], [-1, -1], [2**31] * 3, [2**60, 2**60], ["x"]),
    DEEP,
]
LARGE = [64, 100, 1000, 4096, 30_000, 65_535, 65_536, 2**20, 2**24, 2**30, 2**31 - 1]
"""Sides, paddings, strides, steps and classes that readers take, or nearly: little is written, and
much may follow from it."""

NUMBERS = [0, -1, 1, 7, 2**31, 2**32 - 1, 2**63, float("nan"), float("inf"), -float("inf"), 1e38]
HEADER_SIZES = [0, 1, 7, 8, 255, 2**20, 10**8, 10**8 + 1, 2**32, 2**60, 2**63, 2**64 - 1]
DTYPES = ["F32", "F64", "I64", "I32", "U32", "U16", "U8", "BOOL", "F16", "BF16", "I8", "X", "F4"]


def pick(rng: Rng, options: Any) -> Any:
    """One of a sequence, without numpy's conversions."""
    return options[int(rng.integers(len(options)))]


def damaged_bytes(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """Truncated, flipped, overwritten, cut out, repeated or longer."""
    size = len(data)
    a, b = sorted(int(k) for k in rng.integers(0, size + 1, 2))
    kind = int(rng.integers(8)) if data else 7
    if kind == 0:
        return f"cut off at {a} of {size}", data[:a]
    if kind in (1, 2):
        found = bytearray(data)
        bits = [int(k) for k in rng.integers(0, 8 * size, int(rng.integers(1, 9)))]
        for bit in bits:
            found[bit // 8] ^= 1 << bit % 8
        return f"bits flipped: {bits}", bytes(found)
    if kind == 3:
        b = min(b, a + 64)
        filler = pick(rng, (b"\0", b"\xff", b" ", b"9"))
        return f"{a}:{b} overwritten with {filler!r}", data[:a] + filler * (b - a) + data[b:]
    if kind == 4:
        return f"{a}:{b} cut out", data[:a] + data[b:]
    if kind == 5:
        return f"{a}:{b} repeated", data[:b] + data[a:b] + data[b:]
    if kind == 6:
        word = int(pick(rng, HEADER_SIZES)).to_bytes(8, "little")
        at = 0 if rng.random() < 0.5 else a
        return f"the word at {at} set to {word.hex()}", data[:at] + word + data[at + 8 :]
    extra = rng.bytes(int(rng.integers(1, 64)))
    return f"{len(extra)} bytes behind", data + extra


Place = tuple[Any, Any]
"""A container (dict or list) and a key of it."""


def places(tree: Any) -> list[Place]:
    """Every place of JSON data, outermost first."""
    found: list[Place] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                pending.append(node[key])
    return found


def damaged_json(tree: Any, rng: Rng) -> tuple[str, Any]:
    """One change somewhere in a copy of JSON data (a dict or list)."""
    tree = copy.deepcopy(tree)
    everywhere = places(tree)
    if not everywhere:
        return "nothing to change", tree
    node, key = pick(rng, everywhere)
    other, other_key = pick(rng, everywhere)
    kind = int(rng.integers(8))
    if kind <= 2:
        value = pick(rng, VALUES)
        node[key] = copy.deepcopy(value)
        return f"{key!r} set to {str(value)[:40]}", tree
    if kind == 3:
        del node[key]
        return f"{key!r} removed", tree
    if kind == 4:
        first, second = copy.deepcopy(node[key]), copy.deepcopy(other[other_key])
        node[key] = second
        if _still_there(other, other_key):
            other[other_key] = first
        return f"{key!r} and {other_key!r} swapped", tree
    if kind == 5:
        if isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[f"{key}2"] = copy.deepcopy(node[key])
        return f"{key!r} repeated", tree
    if kind == 6:
        node[key] = copy.deepcopy(other[other_key])
        return f"{key!r} replaced by {other_key!r}", tree
    number = node[key]
    if isinstance(number, bool) or not isinstance(number, int | float):
        node[key] = [number]
        return f"{key!r} put in a list", tree
    node[key] = number + pick(rng, (-1, 1, 2, 0.5, -number, number))
    return f"{key!r} changed from {number} to {node[key]}", tree


def enlarged_json(tree: Any, rng: Rng) -> tuple[str, Any]:
    """Up to four numbers of a copy of JSON data, neighbours first, replaced by large ones."""
    tree = copy.deepcopy(tree)
    numbers = [
        (node, key)
        for node, key in places(tree)
        if isinstance(node[key], int) and not isinstance(node[key], bool)
    ]
    if not numbers:
        return "no number to enlarge", tree
    first, done = int(rng.integers(len(numbers))), []
    for node, key in numbers[first : first + int(rng.integers(1, 5))]:
        node[key] = pick(rng, LARGE)
        done.append(f"{key!r} enlarged to {node[key]}")
    return ", ".join(done), tree


def crowded_text(text: str, rng: Rng) -> tuple[str, str]:
    """A description with one more entry, of many small objects."""
    count, one = (
        int(pick(rng, (1000, 100_000, 2_000_000))),
        pick(rng, ("[]", "{}", '""', "0", "[0]")),
    )
    many = ",".join([one] * count)
    if not text.startswith("{"):
        return "nothing to crowd", text
    return f"{count} times {one}", '{"crowd": [' + many + "]," + text[1:]


def json_text(tree: Any) -> str:
    """JSON text of data that may hold DEEP."""
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * 900 + "]" * 900)


def _still_there(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else key < len(node)


def damaged_text(text: str, rng: Rng) -> tuple[str, str]:
    """JSON text with a number or a key written in a way that JSON data cannot be built to have."""
    kind = int(rng.integers(4))
    if kind == 0:
        digits = "9" * int(pick(rng, (20, 400, 5000)))
        return f"a number of {len(digits)} digits", text.replace(": 1", f": {digits}", 1)
    if kind == 1:
        return "a number beyond float64", text.replace(": 1", ": 1e999", 1)
    if kind == 2:
        at = int(rng.integers(len(text)))
        return "nested without end", text[:at] + "[" * 100_000 + text[at:]
    key = pick(rng, ("time_steps", "layers", "nodes", "name", "shape", "neuron"))
    return f"{key!r} twice", text.replace(f'"{key}":', f'"{key}": 0, "{key}":', 1)


def damaged_tensors(tensors: Tensors, rng: Rng) -> tuple[str, Tensors]:
    """One array changed, or their names."""
    found = dict(tensors)
    if not found:
        return "no arrays", found
    name, other = pick(rng, sorted(found)), pick(rng, sorted(found))
    kind = int(rng.integers(10))
    if kind == 0:
        del found[name]
        return f"{name} removed", found
    if kind == 1:
        found[pick(rng, ("x", "", f"{name}2", f"{other}/bias"))] = found[name].copy()
        return f"a copy of {name}", found
    if kind == 2:
        found[name], found[other] = found[other], found[name]
        return f"{name} and {other} swapped", found
    if kind == 3:
        return f"{name} reshaped", found | {name: _reshaped(found[name], rng)}
    if kind == 4:
        return f"{name} of another dtype", found | {name: _recast(found[name], rng)}
    array = np.array(found[name])
    if array.size == 0:
        return f"{name} is empty", found
    at = int(rng.integers(array.size))
    if kind == 5:
        bits = array.reshape(-1).view(np.uint8)
        bit = int(rng.integers(8 * bits.size))
        bits[bit // 8] ^= 1 << bit % 8
        return f"{name}: bit {bit} flipped", found | {name: array}
    if kind == 6:
        swapped = array.reshape(-1)
        to = int(rng.integers(array.size))
        swapped[[at, to]] = swapped[[to, at]]
        return f"{name}: elements {at} and {to} swapped", found | {name: array}
    value = pick(rng, NUMBERS)
    with np.errstate(all="ignore"):
        if kind == 7:
            array[...] = _as(array.dtype, value)
            return f"{name} all {value}", found | {name: array}
        array.reshape(-1)[at] = _as(array.dtype, value)
    return f"{name}[{at}] set to {value}", found | {name: array}


def _as(dtype: "np.dtype[Any]", value: float) -> Any:
    """`value` in a dtype: the nearest that it has; for bool a byte that is neither 0 nor 1."""
    if dtype == np.bool_:
        return np.array([2], np.uint8).view(np.bool_)[0] if value == 7 else bool(value)
    if dtype.kind == "f":
        return np.float64(value)
    limits = np.iinfo(dtype)
    whole = limits.max if value != value or value == float("inf") else max(value, limits.min)
    return int(min(whole, limits.max))


def _reshaped(array: Array, rng: Rng) -> Array:
    ways: list[Callable[[Array], Array]] = [
        lambda a: a.reshape(-1),
        lambda a: a[None],
        lambda a: a[..., None],
        lambda a: a[:-1] if a.ndim else a[None],
        lambda a: np.concatenate([a, a]) if a.ndim else a[None],
        lambda a: np.ascontiguousarray(a.T),
        lambda a: a[:0] if a.ndim else a[None],
        lambda a: a.reshape(-1)[:1].reshape(()) if a.size else a,
        lambda a: a.reshape(*([1] * 30), *a.shape) if a.ndim < 30 else a.reshape(-1),
        lambda a: a[::-1].copy() if a.ndim else a[None],
    ]
    return np.asarray(pick(rng, ways)(array), order="C")


def _recast(array: Array, rng: Rng) -> Array:
    dtype = np.dtype(pick(rng, ("<f4", "<f8", "<i8", "<i4", "<u4", "<u2", "u1", "?", "<f2", "i1")))
    if rng.random() < 0.5 or array.nbytes % dtype.itemsize or not array.ndim:
        with np.errstate(all="ignore"):
            return np.asarray(array.astype(dtype))
    return array.reshape(-1).view(dtype)


def damaged_container(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """A safetensors file whose header's entries lie; the arrays behind it stay."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = pick(rng, [key for key in header if key != "__metadata__"] or [""])
    kind = int(rng.integers(5))
    text = None
    if kind == 0 and name:
        entry = dict(header[name], **pick(rng, ({"dtype": "U8"}, {"shape": [0]}, {"shape": [1]})))
        text = "{" + f"{json.dumps(name)}: {json.dumps(entry)}, " + json.dumps(header)[1:]
        done = f"{name} twice"
    elif kind == 1 and name:
        header[name]["dtype"] = pick(rng, DTYPES)
        done = f"{name} announced as {header[name]['dtype']}"
    elif kind == 2 and name:
        sides = [[0, 2**62], [0, 2**62, 2**62], [2**60], [-1], [2**32, 2**32], [1] * 70, []]
        header[name]["shape"] = pick(rng, sides)
        done = f"{name} announced as {str(header[name]['shape'])[:40]}"
    elif kind == 3 and name:
        begin, end = header[name]["data_offsets"]
        pairs = [[end, begin], [0, 0], [begin, 2**60], [begin + 1, end + 1], [0, end], [-1, end]]
        header[name]["data_offsets"] = pick(rng, [*pairs, [2**64 - 1, 2**64]])
        done = f"{name} announced at {header[name]['data_offsets']}"
    else:
        done, header = damaged_json(header, rng)
    raw = (text or json_text(header)).encode()
    return f"header: {done}", len(raw).to_bytes(8, "little") + raw + data[8 + size :]
