"""The command `crossmi-service`."""

import difflib
import ipaddress
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from service.memory import share_heaps
from service.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_PREFIX = "CROSSMI_"
_ALIKE = 0.8
"""Of two names by difflib: max_patch is to max_patches 0.9, but pixels to max_pixels 0.75."""
_LIMITS = {
    name: field
    for name, field in Settings.model_fields.items()
    if name not in {"api_key", "backend"}
}
_EPILOG = "\n\n".join(
    [
        "Example: crossmi-service --artifact runs/demo/artifact --port 8000",
        "Limits, with their defaults; CROSSMI_MAX_PATCHES=64 in the environment does the same as "
        "--limit max_patches=64, which wins:",
        *(f"{name}={field.default} ({field.description})" for name, field in _LIMITS.items()),
        "CROSSMI_API_KEY sets a key that clients must send as `Authorization: Bearer KEY`, or "
        "several with commas between them. SIGHUP has the artifact read again.",
    ]
)


@app.command(epilog=_EPILOG)
def serve(
    artifact: Annotated[
        Path, typer.Option(help="Folder of a trained model.", envvar="CROSSMI_ARTIFACT")
    ],
    index: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an index by that model, to search in.", envvar="CROSSMI_INDEX"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set a limit; repeatable.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="folded|eager|onnxruntime|openvino",
            help="How the encoders are computed; CROSSMI_BACKEND does the same.",
        ),
    ] = None,
    *,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Serve beyond loopback without an API key.")
    ] = False,
) -> None:
    """Serve a model over HTTP: embeddings, classes, similarity maps, search, and a page at /."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing to read again yet
    settings = _settings(limit or [], {"backend": backend} if backend else {})
    if not settings.keys and not open_to_all and not _is_loopback(host):
        _refuse(
            f"{host} can be reached by others: set CROSSMI_API_KEY to a key of at least 16 "
            "characters, or say --open-to-all"
        )
    with _listen(host, port) as listening:
        _run(artifact, index, listening, settings)


def main() -> None:
    """Entry point of the console script."""
    app()


def _run(artifact: Path, index: Path | None, listening: socket.socket, settings: Settings) -> None:
    from service.formats import limit_gdal

    share_heaps()

    # It asks another process, for about as long as a part of torch takes to be read.
    with ThreadPoolExecutor(1) as beside:
        limited = beside.submit(limit_gdal)

        from mimodel.artifact import Artifact
        from mimodel.errors import ArtifactError, PatchIndexError
        from service.app import create_app
        from service.server import run

        limited.result()

    try:
        loaded = Artifact.load(artifact)
        app = create_app(loaded, settings, artifact, index)
    except (ArtifactError, PatchIndexError) as error:
        _refuse(str(error))
    host, port = listening.getsockname()[:2]
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    typer.echo(f"crossmi-service: {loaded.id} at http://{at}")
    try:
        run(app, listening, settings)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _settings(limits: Sequence[str], chosen: dict[str, str]) -> Settings:
    _check_names(os.environ)
    given = dict(text.split("=", 1) for text in limits if "=" in text)
    if len(given) < len(limits) or not given.keys() <= _LIMITS.keys():
        _refuse(f"--limit takes NAME=VALUE, each name once, of {', '.join(_LIMITS)}")
    try:
        return Settings.model_validate(given | chosen)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = str(first["loc"][0])
        option = "--limit" if name in _LIMITS else f"--{name}"
        _refuse(f"{name} of {option} or CROSSMI_{name.upper()}: {first['msg']}")


def _check_names(environment: Iterable[str]) -> None:
    """Refuse what is nearly the name of a setting; other programs have CROSSMI_... names too."""
    for given in sorted(environment):
        prefix, name = given[: len(_PREFIX)].upper(), given[len(_PREFIX) :].lower()
        if prefix == _PREFIX and name not in Settings.model_fields:
            meant = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=_ALIKE)
            if meant:
                _refuse(
                    f"there is no setting {given}; did you mean {_PREFIX}{meant[0].upper()}? "
                    "Otherwise take another name"
                )


def _stop(*_: object) -> NoReturn:
    """Before and after uvicorn has its own handler, which drains, SIGTERM is a normal end."""
    raise SystemExit(os.EX_OK)


def _listen(host: str, port: int) -> socket.socket:
    """The bound socket, so that a port in use is known before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except UnicodeError:
        _refuse(f"{host!r} is no address; try 127.0.0.1")
    except OSError as error:
        _refuse(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port")
    # Connections inherit it. asyncio sets it on sockets that it made itself, and the body of an
    # answer would wait 40 ms for the client to acknowledge the headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse(message: str) -> NoReturn:
    typer.echo(f"crossmi-service: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
