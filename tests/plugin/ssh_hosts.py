"""Machines for NNI's remote platform: SSH servers on loopback, each with a home of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .nni_experiments import free_port

SSHD = Path("/usr/sbin/sshd")


def make_key(path: Path) -> Path:
    """A new key pair."""
    subprocess.run(
        [shutil.which("ssh-keygen") or "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path],
        check=True,
    )
    return path


@dataclass
class Host:
    """One machine: what logs in to it has its home, and goes down with it.

    Attributes
    ----------
    folder : for everything that it has
    user_key : private key that may log in
    """

    folder: Path
    user_key: Path
    port: int = field(default_factory=free_port)
    _server: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        make_key(self.folder / "host_key")
        authorized = self.folder / "authorized_keys"
        shutil.copy(self.user_key.with_suffix(".pub"), authorized)
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": authorized,
            "PidFile": "none",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "Subsystem": "sftp internal-sftp",
            # NNI runs `pip install nni --upgrade`; what is installed satisfies it, also offline.
            "SetEnv": f"HOME={self.home} PIP_NO_INDEX=1",
        }
        text = "".join(f"{key} {value}\n" for key, value in settings.items())
        (self.folder / "sshd_config").write_text(text)

    @property
    def home(self) -> Path:
        """Home folder of whoever logs in."""
        return self.folder / "home"

    @property
    def machine(self) -> dict[str, Any]:
        """This host in `machineList`."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "sshKeyFile": str(self.user_key),
            "pythonPath": str(Path(sys.executable).parent),
        }

    def start(self) -> None:
        """Boot."""
        if os.geteuid() == 0:
            # Where no service of the system has made it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self._server = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "sshd.log").read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def pids(self) -> list[int]:
        """The server, its sessions, and all that they have started."""
        found = {self._server.pid} if self._server else set()
        parents, homes = {}, f"HOME={self.home}\0".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stat = (process / "stat").read_text().rpartition(")")[2].split()
                if stat[0] == "Z":
                    continue
                parents[int(process.name)] = int(stat[1])
                if homes in (process / "environ").read_bytes():
                    found.add(int(process.name))
        grown = True
        while grown:
            children = {pid for pid, parent in parents.items() if parent in found} - found
            found |= children
            grown = bool(children)
        return [pid for pid in found if pid in parents]

    def is_distilling(self) -> bool:
        """Whether a trial is at work here."""
        return any(b"distill_trial" in _command(pid) for pid in self.pids())

    def power_off(self) -> None:
        """Everything at once, without a goodbye."""
        deadline = time.monotonic() + 30
        while left := self.pids():
            assert time.monotonic() < deadline, left
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._server:
                self._server.poll()
            time.sleep(0.1)
        self._server = None


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
