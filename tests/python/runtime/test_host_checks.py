"""What a pipeline needs of its machine is checked before anything starts, and named."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit.runtime._emulation.namespaces import why_unavailable
from orbitsplit.runtime._parent import host_checks
from orbitsplit.runtime._parent.host_checks import check_host
from tests.support.paths import ROOT
from tests.support.tiny_models import save_tiny_model

LOCAL = "127.0.0.1"


@pytest.fixture
def limit_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes a number the limit of open files."""

    def limit(files: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _kind: (files, 1 << 20))

    return limit


def test_this_machine_is_fit_for_a_pipeline() -> None:
    check_host(8, LOCAL)


@pytest.mark.parametrize(("files", "stages"), [(24, 2), (64, 4), (100, 200), (1024, 64)])
def test_too_few_files_are_refused(limit_files: Callable[[int], None], files: int, stages: int) -> None:
    limit_files(files)
    with pytest.raises(osp.TransportError, match=rf"may open {files} files here \(ulimit -n\), a pipeline") as caught:
        check_host(stages, LOCAL)
    assert caught.value.kind == "host"


def test_hosts_need_more_files(limit_files: Callable[[int], None]) -> None:
    limit_files(1000)
    check_host(30, LOCAL)
    with pytest.raises(osp.TransportError, match="may open 1000 files here"):
        check_host(30, LOCAL, has_hosts=True)


def test_no_limit_of_files_is_enough(limit_files: Callable[[int], None]) -> None:
    limit_files(resource.RLIM_INFINITY)
    check_host(10_000, LOCAL)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set as on Linux")
def test_the_files_that_are_asked_for_suffice(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    program = """
import resource, sys
from orbitsplit._models import lazy_imports
lazy_imports.install()  # as the command line: half the time
import torch
import orbitsplit as osp
from orbitsplit.runtime._parent import host_checks as checks
stages = 4
needed = checks._open_files() + checks._FILES + checks._FILES_PER_STAGE * stages
resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
with osp.Pipeline(osp.Plan.manual(cuts=[1, 2, 3], layers=4), sys.argv[1]) as pipe:
    print(pipe.generate(torch.full((2, 3), 5), max_new_tokens=3).shape)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout) == (0, "torch.Size([2, 6])\n"), done.stderr


@pytest.mark.parametrize("named", ["eth99", "lo,eth99", "", "lo "])
def test_an_interface_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
    with pytest.raises(osp.TransportError, match=r"GLOO_SOCKET_IFNAME names \".*\", which is no interface here: .*lo"):
        check_host(2, LOCAL)


def test_an_interface_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    check_host(2, LOCAL)
    monkeypatch.setattr(host_checks, "interface_address", lambda _name: None)
    with pytest.raises(osp.TransportError, match='names "lo", which has no IPv4 address'):
        check_host(2, LOCAL)


@pytest.mark.parametrize("address", ["192.0.2.1", "not-a-name.invalid"])
def test_an_address_of_another_machine_is_refused(address: str) -> None:
    with pytest.raises(osp.TransportError, match=f"this machine does not reach itself at {address}: "):
        check_host(2, address)


def test_a_system_without_ipv4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(osp.TransportError, match=r"does not reach itself at 127\.0\.0\.1: .*not supported by protocol"):
        check_host(2, LOCAL)


@pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))
def test_a_loopback_interface_that_is_down_is_named_at_once() -> None:
    # The store's client waited for 30 days.
    program = f"from orbitsplit.runtime._parent.host_checks import check_host; check_host(2, {LOCAL!r})"
    command = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert "is the loopback interface up? (ip link set lo up)" in done.stderr
