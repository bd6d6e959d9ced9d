"""Makes a backend that dies of an illegal instruction: a real library with one function's first bytes replaced."""

from __future__ import annotations

import struct
from pathlib import Path

_ILLEGAL = {62: b"\x0f\x0b", 183: b"\x00\x00\x00\x00"}
"""By the ELF number of the machine: ud2 of x86-64, udf of AArch64."""
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNSYM = 11


def broken(library: Path, target: Path, function: str = "ggml_backend_init") -> Path:
    """Write `library` to `target` with an illegal instruction as the first of the exported `function`."""
    data = bytearray(library.read_bytes())
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [_SECTION.unpack_from(data, table + size * number) for number in range(count)]
    for section in sections:
        if section[1] != _DYNSYM:
            continue
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], _SYMBOL.size):
            name, _, _, _, address, _ = _SYMBOL.unpack_from(data, at)
            end = data.index(b"\0", names + name)
            if data[names + name : end].decode() == function:
                offset = _file_offset(sections, address)
                data[offset : offset + len(_ILLEGAL[machine])] = _ILLEGAL[machine]
                target.write_bytes(data)
                target.chmod(0o755)
                return target
    raise AssertionError(f"{library} exports no {function}")


def _file_offset(sections: list[tuple[int, ...]], address: int) -> int:
    for _, _, _, start, offset, length, *_ in sections:
        if start and start <= address < start + length:
            return offset + address - start
    raise AssertionError(f"no section holds {address:#x}")
