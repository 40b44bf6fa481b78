"""Where scenes come from: one Catalogue a module, chosen by one word."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2pairs.errors import SourceError

if TYPE_CHECKING:
    from s2pairs.scenes import Catalogue, Wanted

EXPECTED = "safe:DIR, stac:URL-or-file, sentinelhub or rasters:DIR"


def open_source(
    source: str,
    bands: Sequence[str],
    *,
    wanted: "Wanted | None",
    hosts: Sequence[str] = (),
) -> "Catalogue":
    """The catalogue of `safe:DIR`, `stac:URL-or-file`, `sentinelhub[:cdse]` or `rasters:DIR`.

    `wanted` says what will be chosen from: remote files outside it are not opened, and with None
    none are. `hosts`, as `name[:port]` or `s3://bucket`, are trusted beside those that the source
    itself names. `SourceError` where the source is not there, or is none of these.
    """
    kind, _, place = source.partition(":")
    if kind == "safe" and place:
        from s2pairs.sources.safe import SafeCatalogue

        return SafeCatalogue(Path(place).absolute(), bands)
    if kind == "rasters" and place:
        from s2pairs.sources.rasters import RastersCatalogue

        return RastersCatalogue(Path(place).absolute(), bands)
    if kind == "stac" and place:
        from s2pairs.sources.stac import StacCatalogue
        from s2pairs.sources.web import Patience

        return StacCatalogue(place, bands, wanted=wanted, told=hosts, patience=Patience())
    if kind == "sentinelhub":
        from s2pairs.sources.sentinelhub import SentinelHubCatalogue
        from s2pairs.sources.web import Patience

        return SentinelHubCatalogue(place, bands, wanted=wanted, patience=Patience())
    raise SourceError(f"unknown source {source!r}; expected {EXPECTED}, such as safe:products")
