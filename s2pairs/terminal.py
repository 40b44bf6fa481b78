"""How a command speaks: errors in one sentence, progress, and what happened as JSON."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from s2pairs.errors import S2PairsError

_EXTRAS = {
    "distributed": "cluster",
    "s3fs": "s3",
    **dict.fromkeys(("pystac_client", "requests", "sentinelhub", "urllib3"), "sources"),
}
"""Where a package comes from, if not from the extra of the command."""
_SAID = (S2PairsError, OSError, ModuleNotFoundError)
"""What becomes one sentence and exit code 2; anything else is a fault of ours, and code 1."""


@contextmanager
def one_sentence(on_interrupt: str = "nothing was changed", extra: str = "cube") -> Iterator[None]:
    """Errors meant for the user become a sentence and exit code 2, Ctrl-C exit code 130."""
    try:
        yield
    except S2PairsError as error:
        typer.echo(f"s2pairs: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"s2pairs: cannot use {error.filename}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        needed = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(needed, extra)
        if needed == "s2pairs":
            raise
        typer.echo(f"s2pairs: {needed} is missing; run pip install 'crossmi[{extra}]'", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"s2pairs: interrupted; {on_interrupt}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def shown_progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line at each tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(unit, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        printed = 0

        def line(done: int, total: int) -> None:
            nonlocal printed
            # a task may advance by several parts at once, so what counts is the last line
            if done * 10 // max(total, 1) > printed:
                printed = done * 10 // total
                typer.echo(f"{done} of {total} {unit}", err=True)

        yield line


@contextmanager
def reported(file: Path | None, out: str) -> Iterator[dict[str, Any]]:
    """Write what happened into `file`, however it ends; the caller fills in what was made."""
    from s2pairs.cost import write_json

    told: dict[str, Any] = {
        "kind": "build",
        "cube": out,
        "outcome": "complete",
        "exit_code": 0,
    }
    try:
        yield told
    except KeyboardInterrupt:
        told.update(outcome="interrupted", exit_code=130)
        raise
    except BaseException as error:
        about = {name: getattr(error, name, "") for name in ("tile", "product")}
        code = 2 if isinstance(error, _SAID) else 1
        told.update(outcome="failed", exit_code=code)
        told["error"] = {"kind": type(error).__name__, "message": str(error), **about}
        raise
    finally:
        if file is not None:
            write_json(file, told)
