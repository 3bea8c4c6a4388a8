"""How large the codecs alone are: code and data of the library, and of a program with it, for each processor.

    python tools/codec_size.py FOLDER       builds in FOLDER for the compilers that are there, prints a table

docs/guides/flight_software.md has the table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Compiler, tool chain file (none: of this machine), `size` of its binutils.
TARGETS = {
    "x86-64, with AVX2 and AVX-512": ("g++", None, "size"),
    "64-bit ARM, with NEON": ("aarch64-linux-gnu-g++", "aarch64-linux-gnu", "aarch64-linux-gnu-size"),
    "32-bit ARM": ("arm-linux-gnueabihf-g++", "arm-linux-gnueabihf", "arm-linux-gnueabihf-size"),
    "64-bit RISC-V": ("riscv64-linux-gnu-g++", "riscv64-linux-gnu", "riscv64-linux-gnu-size"),
}


def main(arguments: Sequence[str]) -> int:
    """Print the table; processors without a compiler are named on standard error."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    print("| processor | library, kB | examples/flight, kB |\n| --- | --- | --- |")
    for name, (compiler, toolchain, size) in TARGETS.items():
        if shutil.which(compiler) is None:
            print(f"{name}: there is no {compiler}", file=sys.stderr)
            continue
        folder = Path(arguments[0]) / compiler
        _build(folder, toolchain)
        library = _bytes(size, folder / "orbitsplit" / "liborbitsplit.a")
        program = _bytes(size, folder / "flight")
        print(f"| {name} | {library / 1e3:.0f} | {program / 1e3:.0f} |", flush=True)
    return 0


def _build(folder: Path, toolchain: str | None) -> None:
    options = ["-DCMAKE_BUILD_TYPE=MinSizeRel", "-DCMAKE_DISABLE_FIND_PACKAGE_orbitsplit=ON"]
    if toolchain is not None:
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cpp/cmake' / toolchain}.cmake")
    _run("cmake", "-S", str(ROOT / "examples/flight"), "-B", str(folder), *options)
    _run("cmake", "--build", str(folder), "--parallel", "2")


def _bytes(size: str, path: Path) -> int:
    """Return code and data: the totals of the columns `text` and `data`, which all of it occupies in memory."""
    lines = _run(size, "-t", str(path)).splitlines()
    text, data = re.findall(r"\d+", lines[-1])[:2]
    return int(text) + int(data)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
