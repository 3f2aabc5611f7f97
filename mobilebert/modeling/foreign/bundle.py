"""Read the variables of a TensorFlow checkpoint with NumPy.

Such a checkpoint is an index and data files: NAME.index, NAME.data-00000-of-00001. The index is a
sorted table in LevelDB's format; its values are protocol buffers that say where in the data files
a variable lies. Source: tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io/table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilebert.modeling.checkpoint_config import MOST_BYTES
from mobilebert.util.errors import UserError, shown

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two block handles, padded, and the magic number
TRAILER = 5  # bytes behind a block: its compression and its checksum
# Numbers of tensorflow/core/framework/types.proto. bfloat16 has no NumPy type, so its bits are
# read as integers.
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "<u2", 19: "<f2"}
BFLOAT16, STRING = 14, 7
MOST_NAMES, LONGEST_NAME = 100_000, 1000  # a name is stored without the start it shares, so a small file holds many
LONGEST_STRING = 16 << 20  # bytes; the graph of two small layers has 20,000
MOST_SIZES = 32  # NumPy takes no more dimensions, or few more
_LANES = 4096  # that `crc32c` computes at once


@dataclass(frozen=True)
class Variable:
    """A variable's place in the data files."""

    name: str
    type: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int | None  # of its bytes: CRC-32C, masked


class Bundle:
    """A checkpoint whose index has been read; its variables are read one by one."""

    def __init__(self, prefix: Path):
        """Read the index. prefix: the path without `.index`. Raises UserError if it is damaged."""
        self.prefix = prefix
        self.index = prefix.with_name(prefix.name + ".index")
        try:
            if (size := self.index.stat().st_size) > MOST_BYTES:
                raise _Refused(f"has {size:,} bytes; at most {MOST_BYTES:,} are read")
            entries: dict[bytes, bytes] = {}
            for key, value in _entries(self.index.read_bytes()):
                if key in entries:
                    raise _Refused(f"damaged: it names {shown(key)} twice")
                entries[key] = value
                if len(entries) > MOST_NAMES or len(key) > LONGEST_NAME:
                    raise _Refused(f"more than {MOST_NAMES:,} names, or one of more than {LONGEST_NAME:,} characters")
            header = fields_of(entries.pop(b""))  # the entry without a name
            self.shards = number_in(header, 1, default=1)
            self.variables = {key.decode(): _variable(key.decode(), value) for key, value in entries.items()}
        except _Refused as error:
            raise UserError(f"{self.index}: {error}") from None
        except (IndexError, KeyError, ValueError, TypeError):
            raise UserError(f"{self.index}: damaged, or no index of a TensorFlow checkpoint") from None
        for variable in self.variables.values():
            path = self._data_file(variable)
            if not path.is_file():
                raise UserError(f"{path}: missing, though the index names it")
            if path.stat().st_size < (end := variable.offset + variable.size):
                raise UserError(f"{path}: too short: {variable.name} ends at byte {end:,}, the file at {path.stat().st_size:,}")

    def _data_file(self, variable: Variable) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{variable.shard:05d}-of-{self.shards:05d}")

    def read(self, name: str) -> np.ndarray:
        """Return a variable's values.

        Raises UserError for a type that is no number, and for values that are damaged.
        """
        variable = self.variables[name]
        if variable.type not in TYPES:
            raise UserError(f"{self.index}: {name} has a type (number {variable.type}) that cannot be read")
        if 0 in variable.shape:
            raise UserError(f"{self.index}: {name} holds no values")
        content = self._content(variable)
        self._check(variable, content)
        values = np.frombuffer(content, TYPES[variable.type]).reshape(variable.shape)
        return (values.astype(np.uint32) << 16).view(np.float32) if variable.type == BFLOAT16 else values

    def read_string(self, name: str) -> bytes:
        """Return the value of a variable that is one string.

        Its bytes are the string's length, a checksum of the length, and the string. Raises
        UserError if it is no string or is damaged.
        """
        variable = self.variables[name]
        if variable.type != STRING or variable.shape or variable.size > LONGEST_STRING:
            raise UserError(f"{self.index}: damaged: {name} is no string of at most {LONGEST_STRING:,} bytes")
        content = self._content(variable)
        try:
            length, start = _varint(content, 0)
        except (IndexError, ValueError):
            length = start = 0
        if start + 4 + length != len(content):
            raise UserError(f"{self._data_file(variable)}: damaged: {name} is no string")
        self._check(variable, length.to_bytes(4, "little") + content[start:])
        return content[start + 4 :]

    def _content(self, variable: Variable) -> bytes:
        with self._data_file(variable).open("rb") as stream:
            stream.seek(variable.offset)
            return stream.read(variable.size)

    def _check(self, variable: Variable, content: bytes) -> None:
        if variable.checksum is not None and crc32c(content) != _unmasked(variable.checksum):
            raise UserError(f"{self._data_file(variable)}: damaged: the checksum of {variable.name} does not hold")


class _Refused(Exception):
    """A reason why an index is not read."""


def _variable(name: str, value: bytes) -> Variable:
    fields = fields_of(value)
    if 7 in fields:
        raise _Refused(f"{name} was saved in slices, by several machines; save the checkpoint from one")
    sizes = tuple(number_in(fields_of(size), 1) for size in (fields_of(fields[2][0]) if 2 in fields else {}).get(2, []))
    checksum = int.from_bytes(fields[6][0], "little") if 6 in fields else None
    found = Variable(
        name, number_in(fields, 1), sizes, number_in(fields, 3), number_in(fields, 4), number_in(fields, 5), checksum
    )
    if len(sizes) > MOST_SIZES:
        raise _Refused(f"damaged: {name} has {len(sizes):,} dimensions")
    if found.type in TYPES and found.size != np.dtype(TYPES[found.type]).itemsize * math.prod(sizes):
        raise _Refused(f"damaged: {name} has {found.size:,} bytes, which are not those of its shape {sizes!s:.60}")
    return found


def number_in(fields: dict[int, list], key: int, default: int = 0) -> int:
    """Return a field's first value. Raises TypeError if it is bytes."""
    value = fields.get(key, [default])[0]
    if not isinstance(value, int):
        raise TypeError("no number")
    return value


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in the order of keys."""
    if len(content) < FOOTER or int.from_bytes(content[-8:], "little") != MAGIC:
        raise _Refused("damaged, or no index of a TensorFlow checkpoint")
    footer, place = content[-FOOTER:], 0
    for _ in range(2):  # the handle of the table of metadata, which is empty
        _, place = _varint(footer, place)
    offset, place = _varint(footer, place)
    size, _ = _varint(footer, place)
    end = 0
    for _, handle in _block(content, offset, size):
        start, place = _varint(handle, 0)
        length, _ = _varint(handle, place)
        if start < end:  # a block that is read again and again would take hours
            raise _Refused("damaged: its blocks overlap")
        end = start + length + TRAILER
        yield from _block(content, start, length)


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block. A key is stored without the start it shares."""
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + TRAILER]
    if len(block) < size or len(trailer) < TRAILER or size < 4:
        raise _Refused("damaged, or no index of a TensorFlow checkpoint")
    if trailer[0] == 1:
        raise _Refused("compressed with Snappy, which is not read; load and save it once with a current TensorFlow")
    if trailer[0] != 0 or crc32c(block + trailer[:1]) != _unmasked(int.from_bytes(trailer[1:], "little")):
        raise _Refused("damaged: a checksum does not hold")
    restarts = int.from_bytes(block[-4:], "little")
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + unshared]
        yield key, block[place + unshared : place + unshared + length]
        place += unshared + length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return the integer at a place, seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("no integer")


def fields_of(message: bytes) -> dict[int, list]:
    """Return the fields of a protocol buffer by number: integers, or bytes."""
    found: dict[int, list] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
        else:
            if kind == 2:
                length, place = _varint(message, place)
            else:
                length = {1: 8, 5: 4}[kind]
            value = message[place : place + length]
            place += length
            if len(value) < length:
                raise ValueError("cut off")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _crc32c(content: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 255] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of bytes; of many, with NumPy, which is a hundred times as fast.

    The bytes are cut into lanes of one length, and each step takes one byte of every lane. The
    remainders of the lanes are then joined. Moving a remainder past a lane of zeros is linear, so
    the lanes' steps also move the 32 numbers that have one bit.
    """
    if len(content) < 4 * _LANES:
        return _crc32c(content)
    steps = -(-len(content) // _LANES)
    start = _LANES * steps - len(content)  # zeros in front of the content change no remainder of 0
    lanes = np.zeros(_LANES * steps, np.uint8)
    lanes[start:] = np.frombuffer(content, np.uint8)
    lanes[start : start + 4] ^= 255  # the same as a remainder that begins with 32 ones
    table = np.array(_TABLE, np.uint32)
    state = np.append(np.zeros(_LANES, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32))
    for column in lanes.reshape(_LANES, steps).T:
        state[:_LANES] ^= column
        state = (state >> 8) ^ table[state & 255]
    value, bits = 0, [int(bit) for bit in state[_LANES:]]
    for lane in state[:_LANES].tolist():
        moved = 0
        for place in range(32):
            if value >> place & 1:
                moved ^= bits[place]
        value = moved ^ lane
    return value ^ 0xFFFFFFFF


def _unmasked(value: int) -> int:
    """Return a checksum as it was before LevelDB rotated it and added a constant."""
    rotated = (value - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def _table() -> list[int]:
    """Return the remainder of each byte for the polynomial of CRC-32C, with its bits reversed."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()
