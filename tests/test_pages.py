"""What the pages of the repository point at is in it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return listed.stdout.split()


def test_every_link_and_picture_is_there() -> None:
    if not (pages := _pages()):
        pytest.skip("not a git checkout, so nothing tells which pages are the repository's")
    assert "README.md" in pages
    missing = []
    for page in pages:
        for target in _LINK.findall((ROOT / page).read_text()):
            path = target.partition("#")[0]
            if path and "://" not in path and not (ROOT / page).parent.joinpath(path).exists():
                missing.append(f"{page}: {target}")
    assert not missing
