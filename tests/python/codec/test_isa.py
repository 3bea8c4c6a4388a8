"""Instruction sets: the fastest is chosen, ORBITSPLIT_ISA and set_isa force another, wrong names are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orbitsplit._backend import load_backend

NATIVE = load_backend("native")
CODE = "from orbitsplit._backend import load_backend; print(load_backend('native').isa())"


def run(**environment):
    environment |= {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, env=environment)


def test_the_fastest_is_chosen():
    assert run().stdout.strip() == NATIVE.isas()[-1]


@pytest.mark.parametrize("name", NATIVE.isas())
def test_the_environment_forces_one(name):
    assert run(ORBITSPLIT_ISA=name).stdout.strip() == name


def test_an_unknown_name_is_refused_with_the_known_ones():
    failed = run(ORBITSPLIT_ISA="sse9")
    assert failed.returncode != 0
    message = f'ValueError: ORBITSPLIT_ISA is "sse9"; this processor and build have {", ".join(NATIVE.isas())}'
    assert failed.stderr.splitlines()[-1] == message


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_set_isa_takes_what_isas_lists(backend):
    module = load_backend(backend)
    chosen = module.isa()
    assert chosen in module.isas()
    for name in module.isas():
        module.set_isa(name)
        assert module.isa() == name
    module.set_isa(chosen)
    with pytest.raises(ValueError, match='isa is "mmx"; this processor and build have '):
        module.set_isa("mmx")
