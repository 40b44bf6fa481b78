"""Who trained a run: sessions.jsonl in its folder has one line for each time it was started.

A run may be stopped, and go on with other code, on another machine, in another precision. What came
of it says so, whichever of them was the last.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from mimodel.parallel import processes

_FILE = "sessions.jsonl"


@dataclass(frozen=True)
class Session:
    """One start of a run."""

    step: int
    """Steps that were done before it."""
    started: str
    """Coordinated universal time."""
    commit: str
    """Of the source tree, with "+changes" where files that it tracks differ; else "unknown"."""
    device: str
    processes: int
    precision: str
    versions: dict[str, str]
    """Of crossmi and torch."""

    @classmethod
    def now(cls, step: int, device: torch.device, precision: torch.dtype) -> "Session":
        return cls(
            step=step,
            started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            commit=_commit(),
            device=_device_name(device),
            processes=processes(),
            precision=str(precision).removeprefix("torch."),
            versions={"crossmi": version("crossmi"), "torch": str(torch.__version__)},
        )


def note_session(folder: Path, session: Session) -> None:
    """Add a line. A session that a kill ended may have got no further than the next one begins: its
    line stays, and what it did was lost."""
    with (folder / _FILE).open("a") as file:
        file.write(json.dumps(asdict(session)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_sessions(folder: Path) -> list[Session]:
    """All sessions of a run, the first one first. A line that a kill has torn is left out."""
    path = folder / _FILE
    sessions = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            sessions.append(Session(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return sessions


def provenance(sessions: Sequence[Session]) -> dict[str, str]:
    """What an artifact says of them; where they differ, each value once, in order."""
    said: dict[str, dict[str, None]] = {}
    for one in sessions:
        names = {"commit": one.commit, **one.versions, "device": one.device}
        names |= {"processes": str(one.processes), "precision": one.precision}
        for name, value in names.items():
            said.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in said.items()}


def _commit() -> str:
    """The commit of the source tree that this module runs from, or 'unknown' outside of one."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return f"{commit or 'unknown'}{'+changes' if commit and changes else ''}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads ({_processor()})"


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
