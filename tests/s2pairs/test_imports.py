"""The contracts of import-linter name modules one by one; none may be forgotten."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]


@pytest.mark.parametrize(
    ("contract", "package", "exempt"),
    [
        ("only group.py knows zarr", "s2pairs", {"s2pairs.group"}),
        (
            "only what adapts Sentinel-2 and the bulk embedding of mimodel read cubes",
            "mimodel",
            {
                "mimodel.data.landcover",
                "mimodel.data.scenes",
                "mimodel.data.sentinel2",
                "mimodel.embed",
            },
        ),
    ],
)
def test_a_contract_covers_every_module_but_those_that_may(
    contract: str, package: str, exempt: set[str]
) -> None:
    (named,) = (set(each["source_modules"]) for each in CONTRACTS if each["name"] == contract)
    for path in (ROOT / package).rglob("*.py"):
        if path.name != "__init__.py":
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            covered = any(f"{module}.".startswith(f"{name}.") for name in named)
            assert covered == (module not in exempt), module
