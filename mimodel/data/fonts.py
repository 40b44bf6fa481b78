"""Handwriting fonts, fetched from npm: the hands of `mimodel.data.font_words`."""

import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mimodel.data.npm import npm_pack
from mimodel.data.sums import check_sum, note_sum
from mimodel.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_VERSION = "5.3.0"
_OTHER_VERSIONS = {"condiment": "4.5.1", "happy-monkey": "5.2.8", "montecarlo": "5.2.8"}

FONTS: tuple[str, ...] = tuple(
    """
    alex-brush allura amatic-sc annie-use-your-telescope architects-daughter bad-script
    balsamiq-sans berkshire-swash birthstone caveat caveat-brush cedarville-cursive chilanka
    comic-neue condiment cookie corinthia courgette covered-by-your-grace damion dancing-script
    delicious-handrawn delius ephesis finger-paint gaegu gloria-hallelujah gochi-hand grand-hotel
    grandstander great-vibes handlee happy-monkey herr-von-muellerhoff homemade-apple indie-flower
    italianno itim kalam kaushan-script licorice mansalva marck-script monsieur-la-doulaise
    montecarlo mr-de-haviland ms-madi nanum-brush-script nanum-pen-script neucha oooh-baby pacifico
    parisienne patrick-hand permanent-marker pinyon-script playpen-sans poor-story reenie-beanie
    rochester rock-salt sacramento satisfy schoolbell shadows-into-light shantell-sans short-stack
    smooch sriracha sue-ellen-francisco swanky-and-moo-moo tangerine the-girl-next-door
    twinkle-star vibur whisper yellowtail
    """.split()  # noqa: SIM905 -- shorter to read
)
"""Handwriting fonts with all Latin letters, by their npm packages `@fontsource/...`. Free: OFL-1.1,
Apache-2.0 or MIT, each in its package."""

_AT_ONCE = 8
_SUFFIXES = (".woff2", ".ttf", ".otf")


def fetch_fonts(folder: Path, report: Callable[[str], None], fonts: Sequence[str] = FONTS) -> None:
    """Each font as `folder/name.woff2`, by `npm pack`, which compares the packages with the
    registry's digests; what is there already is kept if it is what came.

    `DataError` where npm is missing or fails, or where a font does not open or has changed; the
    same call goes on where it stopped.
    """
    missing = [name for name in fonts if not _opens(folder, name)]
    if not missing:
        fetched = [folder / f"{name}{_SUFFIXES[0]}" for name in fonts]
        verified = sum(check_sum(file) for file in fetched if file.exists())
        report(f"{folder} has all {len(fonts)} fonts already, {verified} as they came, verified")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        try:
            _fetch(some, folder)
        except (OSError, tarfile.TarError) as error:
            raise DataError(
                f"the fonts {', '.join(some)} could not be fetched: {error}; put a file such as "
                f"{some[0]}.woff2 or {some[0]}.ttf for each font into {folder}"
            ) from error
        report(f"{folder}: {', '.join(some)}")


def open_font(folder: Path, name: str, size: float) -> "FreeTypeFont":
    """A font of `folder`, `size` pixels to the em; `DataError` where there is none that opens.

    Laid out letter by letter: what a shaping library would make of the same font depends on
    whether it is installed.
    """
    from PIL import ImageFont

    files = [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
    file = next((file for file in files if file.exists()), files[0])
    try:
        return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise DataError(
            f"cannot open the font {file}: {error}; `mimodel data font-words --to {folder}` "
            "fetches it"
        ) from error


def _fetch(fonts: Sequence[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        versions = {name: _OTHER_VERSIONS.get(name, _VERSION) for name in fonts}
        npm_pack([f"@fontsource/{name}@{is_}" for name, is_ in versions.items()], Path(scratch))
        for name in fonts:
            found = sorted(Path(scratch).rglob(f"{name}-latin-400-normal.woff2"))
            if not found:
                raise OSError(f"the package of {name} holds no {name}-latin-400-normal.woff2")
            found[0].replace(folder / f"{name}.woff2")
            if not _opens(folder, name):
                raise OSError(f"{name}.woff2 does not open; Pillow may be built without Brotli")
            note_sum(folder / f"{name}.woff2")


def _opens(folder: Path, name: str) -> bool:
    try:
        open_font(folder, name, 16)
    except DataError:
        return False
    return True
