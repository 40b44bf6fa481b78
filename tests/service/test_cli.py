"""`crossmi-service` says what is wrong in one sentence, and what it needs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimodel.artifact import ArtifactSpec, Networks, save_artifact
from mimodel.networks import ConvSpec, EncoderSpec
from mimodel.normalisation import Normalisation
from service import formats
from service.cli import _check_names, _listen, app
from service.settings import Settings

COMMAND = [sys.executable, "-m", "service.cli"]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment},
    )


def refused_here(*options: str) -> subprocess.CompletedProcess[str]:
    """What `run` gives, in this process: for what is refused once torch is there, before serving.

    To import torch takes ten seconds of a slow core. GDAL keeps its drivers, for other tests.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "limit_gdal", lambda: None)
            done = CliRunner().invoke(app, options)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(done.exception, SystemExit), done.exception
    return subprocess.CompletedProcess(options, done.exit_code, done.stdout, done.stderr)


def one_sentence(result: subprocess.CompletedProcess[str], *says: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("crossmi-service: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for words in says:
        assert words in result.stderr


def test_help_has_an_example_and_every_limit_with_its_default() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "crossmi-service --artifact runs/demo/artifact --port 8000" in result.stdout
    for name, field in Settings.model_fields.items():
        assert name in {"api_key", "backend"} or f"{name}={field.default}" in result.stdout
    assert "CROSSMI_API_KEY" in result.stdout


def test_a_flipped_bit(artifact_folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact_folder, damaged)
    model = damaged / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    one_sentence(refused_here("--artifact", str(damaged), "--port", "0"), "damaged", "digest")


def test_a_port_in_use(artifact_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("--artifact", str(artifact_folder), "--port", port)
    one_sentence(result, port, "choose another --port")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    # Headers and body of an answer are written apart; with Nagle's algorithm the second waits for
    # the client to acknowledge the first, 40 ms on an idle connection.
    with _listen("127.0.0.1", 0) as listening:
        with socket.create_connection(listening.getsockname()):
            connection, _ = listening.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_not_ours(artifact_folder: Path) -> None:
    result = run("--artifact", str(artifact_folder), "--host", "192.0.2.1", "--open-to-all")
    one_sentence(result, "cannot listen on 192.0.2.1")


def test_a_model_of_other_images_than_patches(tmp_path: Path) -> None:
    """Of words, 64 x 256: a benchmark's artifact is none to serve."""
    convolutions = (ConvSpec(channels=2, stride=2, batch_norm=False), ConvSpec(channels=2))
    spec = ArtifactSpec(
        name="words",
        encoder=EncoderSpec(
            in_channels=1, image_size=(64, 256), convolutions=convolutions, representation=4
        ),
        normalisation=Normalisation(bands=("grey",), mean=(0.5,), std=(0.5,)),
        representations={"shared": 4},
    )
    save_artifact(tmp_path / "words", spec, Networks(spec).state_dict(), "# Words\n")
    result = refused_here("--artifact", str(tmp_path / "words"), "--port", "0")
    one_sentence(result, "words reads images of 64 x 256 pixels, and not square patches")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_beyond_loopback_a_key_is_needed(artifact_folder: Path, host: str) -> None:
    result = run("--artifact", str(artifact_folder), "--host", host)
    one_sentence(result, host, "CROSSMI_API_KEY", "--open-to-all")


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (["--limit", "max_patches"], {}, "NAME=VALUE"),
        (["--limit", "max_patch=1"], {}, "max_patches"),
        (["--limit", "api_key=abc"], {}, "NAME=VALUE"),
        (["--limit", "max_patches=0"], {}, "max_patches"),
        (["--limit", "max_patches=many"], {}, "max_patches"),
        ([], {"CROSSMI_MAX_WAITING": "-1"}, "CROSSMI_MAX_WAITING"),
        ([], {"CROSSMI_MAX_PATCH": "3"}, "no setting CROSSMI_MAX_PATCH; did you mean CROSSMI_MAX_"),
        ([], {"crossmi_max_wait": "3"}, "did you mean CROSSMI_MAX_WAITING?"),
        (
            [],
            {"CROSSMI_API_KEY": "short"},
            "CROSSMI_API_KEY: Value error, every key should",
        ),
        (["--host", "0.0.0.0"], {"CROSSMI_API_KEY": ""}, "every key should"),
        ([], {"CROSSMI_API_KEY": "k" * 16 + ", "}, "every key should"),
    ],
)
def test_a_wrong_limit(options: list[str], environment: dict[str, str], says: str) -> None:
    result = run("--artifact", "any", *options, **environment)
    one_sentence(result, says)
    assert "short" not in result.stderr


def test_names_that_other_programs_have_in_the_environment_are_no_settings() -> None:
    """Of the notebooks, tests, benchmarks and the Compose file here, and the settings' own."""
    others = "API_KEY ARTIFACT BENCHMARK_PRODUCTS CUBE DATA IMAGE INDEX KEY MODELS PIXELS URL"
    names = {f"CROSSMI_{name}" for name in (*others.split(), "PIXEL_MODEL", "REQUESTS")}
    _check_names(names | {f"CROSSMI_{name.upper()}" for name in Settings.model_fields})


def test_limits_come_from_the_environment_and_the_command_line_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CROSSMI_MAX_PATCHES", "7")
    monkeypatch.setenv("CROSSMI_MAX_WAITING", "3")
    settings = Settings.model_validate({"max_patches": "9"})
    assert (settings.max_patches, settings.max_waiting) == (9, 3)


def test_keys_have_no_blanks_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSMI_API_KEY", f"{'a' * 16}, {'b' * 16}\n")
    assert Settings().keys == ("a" * 16, "b" * 16)


def test_the_service_imports_neither_training_nor_providers() -> None:
    # What a request for an embedding of .npy patches never needs, rasterio included.
    program = (
        "import sys, service.app, service.cli; print(*sorted(m for m in sys.modules if m in "
        "{'rasterio', 's2pairs', 'torchgeo', 'sentinelhub', 'mimodel.train', 'mimodel.config', "
        "'mimodel.data', 'mimodel.methods', 'matplotlib', 'sklearn', 'zarr', 'xarray'}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_help_needs_no_torch() -> None:
    program = "import sys, service.cli; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
