"""Makes vecdb/index/kernels/*.ptx.xz from the *.cu beside them, or says which are stale.

    python tools/kernels.py            compiles, with NVRTC from the package nvidia-cuda-nvrtc-cu12
    python tools/kernels.py --check    writes nothing, exits with 1 when a committed file is stale

No GPU and no CUDA is needed. A .ptx begins with the hash of what it was made from, so that the check needs no
compiler. PTX is what the driver of a card compiles for it: one file serves all cards from the compute capability on that
its source names in the first line, and all later ones.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import lzma
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "vecdb" / "index" / "kernels"
OPTIONS = ("--std=c++17", "--fmad=true")
"""NVRTC 12.1 gives PTX 8.1, which drivers from 530 on take; FAISS's wheels need newer ones."""


def source_of(path: Path) -> str:
    """The text of a source, with what it includes in its place."""
    text = path.read_text(encoding="utf-8")
    for other in sorted(KERNELS.glob("*.cuh")):
        text = text.replace(f'#include "{other.name}"\n', other.read_text(encoding="utf-8"))
    return text


def stamp(source: str) -> str:
    """The first line of what is made from `source`."""
    made_of = hashlib.sha256("\n".join((source, *OPTIONS)).encode()).hexdigest()
    return f"// Made by tools/kernels.py; source and options {made_of}"


def compiled(name: str, source: str) -> str:
    """PTX of a source; SystemExit with the compiler's words when it is wrong."""
    library = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), 0, None, None
    )
    if made:
        raise SystemExit(f"nvrtcCreateProgram failed with {made}")
    target = source.split("\n", 1)[0].removeprefix("// target: ")
    words = [option.encode() for option in (f"--gpu-architecture={target}", *OPTIONS)]
    options = (ctypes.c_char_p * len(words))(*words)
    failed = library.nvrtcCompileProgram(program, len(words), options)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    said = log.value.decode()
    if failed:
        raise SystemExit(f"{name} does not compile:\n{said}")
    if said.strip():
        print(said, file=sys.stderr)
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, text)
    return text.value.decode()


def _nvrtc() -> ctypes.CDLL:
    found = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12==12.1.105")
    folder = Path(next(iter(found.submodule_search_locations))) / "lib"
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.12*"))))


def main() -> int:
    """Compiles, or with --check compares; the exit code."""
    parser = argparse.ArgumentParser(description="Compiles the kernels for GPUs to PTX.")
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    check = parser.parse_args().check
    stale = []
    for path in sorted(KERNELS.glob("*.cu")):
        source = source_of(path)
        made = path.with_suffix(".ptx.xz")
        known = lzma.decompress(made.read_bytes()).decode() if made.exists() else ""
        if known.startswith(stamp(source) + "\n"):
            continue
        if check:
            stale.append(made.name)
            continue
        text = f"{stamp(source)}\n{compiled(path.name, source)}"
        made.write_bytes(lzma.compress(text.encode()))
        print(made)
    if stale:
        print(f"stale: {', '.join(stale)}; run: python tools/kernels.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
