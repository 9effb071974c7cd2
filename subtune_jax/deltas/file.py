"""The file of a delta: one safetensors container with one JSON string beside it.

    params/... stats/...   tensors that are stored as a whole, under their paths
    PATH/a, PATH/b         the low-rank factors of the kernel at PATH
    unary, low             the places of all elements, joined over their sorted leaves
    values                 their values, one leaf after the other, as bytes
    delta (metadata)       JSON: format, leaves of the elements, about, SHA-256 of it all

A file is read only if its digest holds, and if writing what was read gives its bytes
again: no bit of it is without a meaning.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from subtune_jax import tree
from subtune_jax.deltas import codec
from subtune_jax.deltas.codec import Coded
from subtune_jax.deltas.delta import Delta, Elements
from subtune_jax.errors import InputError
from subtune_jax.head import HEADS
from subtune_jax.tuning.lora import Factors

FORMAT = 1
STREAMS = ("unary", "low", "values")


def save(delta: Delta, file: str | Path) -> None:
    """Writes a delta, to a temporary name first; raises `InputError` where it cannot."""
    write(Path(file), to_bytes(delta))


def write(file: Path, data: bytes) -> None:
    """Writes a file whole, under a temporary name first; raises `InputError` where it
    cannot, and leaves nothing then."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot write {file}: {error.strerror or error}") from None


def load(file: str | Path) -> Delta:
    """Returns the delta in a file; raises `InputError` for what is not a whole one."""
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {file}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    return from_bytes(data, str(file))


def to_bytes(delta: Delta) -> bytes:
    """Returns the bytes of a delta's file; equal deltas have equal bytes.

    Raises `InputError` for what is stored beside that is not JSON, and for types that a
    safetensors file has none of.
    """
    leaves = dict(sorted(delta.elements.items()))
    coded = codec.encode(_joined(leaves))
    values = b"".join(some.values.tobytes() for some in leaves.values())
    tensors = {p: _plain(array) for p, array in delta.whole.items()}
    tensors |= {"unary": coded.unary, "low": coded.low}
    for path, factors in delta.factors.items():
        tensors |= {
            f"{path}/{n}": _plain(x) for n, x in zip("ab", factors, strict=False)
        }
    tensors["values"] = np.frombuffer(values, np.uint8)
    dtypes = [str(some.values.dtype) for some in leaves.values()]
    common = max(dtypes, key=dtypes.count, default="float32")
    _require_types({**tensors, **{p: e.values for p, e in leaves.items()}})
    facts = {
        "format": FORMAT,
        "low_bits": coded.low_bits,
        "dtype": common,
        "elements": tree.unflatten({p: _entry(e, common) for p, e in leaves.items()}),
        "factors": {p: float(some.scale) for p, some in delta.factors.items()},
        "about": _as_json(delta.about),
    }
    facts["digest"] = _digest(facts, tensors)
    return safetensors.numpy.save(tensors, {"delta": _json(facts)})


def from_bytes(data: bytes, name: str = "the delta") -> Delta:
    """Returns the delta of a file's bytes; raises `InputError`, naming the file, for bytes
    that `to_bytes` does not write."""
    facts = header(data, name)
    try:
        tensors = dict(safetensors.deserialize(data))
        delta = _delta(facts, tensors)
        _require_facts(delta.about)
        whole = to_bytes(delta) == bytes(data)
    except MemoryError:  # the machine's fault, not the file's
        raise
    except Exception:  # whatever a damaged file raises; nothing of it was used
        raise InputError(f"{name} is damaged: it cannot be read") from None
    if not whole:
        raise InputError(f"{name} is damaged: its digest does not hold")
    return delta


def header(data: bytes, name: str = "the delta") -> dict[str, Any]:
    """Returns the JSON of a delta's file from its first bytes, unchecked but for its form
    and format; raises `InputError` for another file."""
    try:
        size = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + size])["__metadata__"]["delta"]
        facts = json.loads(text)
        version = facts["format"]
    except Exception:  # as above
        raise InputError(f"{name} is damaged, or is not the file of a delta") from None
    if version != FORMAT:
        raise InputError(
            f"{name} has format {version!r}, and this version reads {FORMAT}: install a "
            "newer subtune-jax"
        )
    return facts


def read_header(file: Path) -> dict[str, Any]:
    """Returns the JSON of a delta's file, unchecked as in `header`; no values are read."""
    try:
        with open(file, "rb") as data:
            size = data.read(8)
            most = min(int.from_bytes(size, "little"), file.stat().st_size)
            return header(size + data.read(most), str(file))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


def _delta(facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> Delta:
    entries = dict(_entries(facts["elements"]))
    total = sum(_parts(entry, facts)[1] for entry in entries.values())
    unary, low, stream = (_array(tensors[name]) for name in STREAMS)
    places = codec.decode(Coded(total, facts["low_bits"], unary, low))
    elements, begin, byte, offset = {}, 0, 0, 0
    for path, entry in entries.items():
        dtype, count, shape = _parts(entry, facts)
        end, size = begin + count, int(np.prod(shape))
        bytes_ = count * dtype.itemsize
        own = places[begin:end] - offset
        if len(own) and not 0 <= own[0] <= own[-1] < size:
            raise ValueError(f"places past the leaf {path}")
        values = stream[byte : byte + bytes_].view(dtype)
        elements[path] = Elements(shape, own, values)
        begin, byte, offset = end, byte + bytes_, offset + size
    whole = {n: _array(t) for n, t in tensors.items() if n not in STREAMS}
    factors = {
        path: Factors(whole.pop(f"{path}/a"), whole.pop(f"{path}/b"), scale)
        for path, scale in facts["factors"].items()
    }
    return Delta(whole, elements, factors, facts["about"])


def _plain(array: Any) -> np.ndarray:
    # Not ascontiguousarray, which makes a scalar a vector.
    return np.asarray(array, order="C")


def _as_json(about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values as they will be read: keys are strings, tuples are lists."""
    try:
        return json.loads(json.dumps(dict(about)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"what is stored beside a delta is not JSON: {error}; convert arrays with "
            "float() or tolist()"
        ) from None


def _require_types(tensors: Mapping[str, np.ndarray]) -> None:
    for path, array in tensors.items():
        if str(array.dtype) not in NAMES.values():
            raise InputError(
                f"{path!r} is {array.dtype}, which a delta cannot hold: expected one of "
                f"{', '.join(NAMES.values())}"
            )


def _require_facts(about: Mapping[str, Any]) -> None:
    """Raises for a file of other facts than ours, which `from_bytes` turns into a sentence."""
    base, head = about["base"], about["head"]
    if not {"arrays", "file", "name", "options"} <= base.keys():
        raise ValueError("no base")
    if head is not None and (head["kind"] not in HEADS or "dtypes" not in head):
        raise ValueError("no head of ours")


def _joined(leaves: Mapping[str, Elements]) -> np.ndarray:
    """Returns the places of all leaves as places in one row of them all."""
    sizes = [int(np.prod(some.shape)) for some in leaves.values()]
    begins = np.cumsum([0, *sizes])
    parts = [some.places + begins[i] for i, some in enumerate(leaves.values())]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _entry(some: Elements, common: str) -> list:
    """Returns [number of elements, *shape], after the type where it is not the common one."""
    dtype = str(some.values.dtype)
    entry = [len(some.places), *some.shape]
    return entry if dtype == common else [dtype, *entry]


def _parts(entry: list, facts: Mapping[str, Any]) -> tuple[np.dtype, int, tuple]:
    """Returns the type, number of elements and shape of an entry."""
    dtype = entry[0] if isinstance(entry[0], str) else facts["dtype"]
    count, *shape = [part for part in entry if not isinstance(part, str)]
    return jnp.dtype(dtype), count, tuple(shape)


def _entries(node: Any, path: str = "") -> list[tuple[str, list]]:
    """Returns the entries of the nested dict of leaves, by path in sorted order."""
    if isinstance(node, list):
        return [(path, node)]
    return sorted(
        entry
        for key, under in node.items()
        for entry in _entries(under, f"{path}/{key}".lstrip("/"))
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_json(facts).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"\n{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
NAMES |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
NAMES |= {f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)} | {"BOOL": "bool"}


def _array(tensor: Mapping[str, Any]) -> np.ndarray:
    dtype = jnp.dtype(NAMES[tensor["dtype"]])
    return np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
