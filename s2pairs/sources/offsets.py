"""Do digital numbers carry the 1000 that baseline 04.00 adds? Metadata say so, pixels witness.

Items of some providers are wrong about it in both directions, so nobody is believed alone.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from s2pairs.bands import NO_DATA_DN, SATURATED_DN
from s2pairs.errors import SceneError

ADDED = -1000

# All levels are of the darkest percent of the pixels, in digital numbers.
_DARKEST_PERCENT = 1.0
_IMPOSSIBLE = 700  # with 1000 taken away it would reflect less than -3 %
_LEAST_WITH, _MOST_WITH = 900, 1300
_CAN_BE_DARK = ("B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_SHORT_WAVE_INFRARED = ("B11", "B12")  # sees through haze
_CIRRUS_WITH = 900  # the median of B10, which sees next to nothing below high clouds
# At the top of the atmosphere the air alone reflects so much that less cannot be with 1000 added.
_LEAST_THROUGH_AIR = {"B01": 1500, "B02": 1300}
_MOSTLY_CLOUD = 4000  # the median of the darkest band
_WITNESSES = 2  # bands
_ENOUGH = 1_000  # pixels
_ENOUGH_WITHOUT_INFRARED = 50_000  # haze over a small place looks like the offset

Samples = Mapping[str, npt.NDArray[np.uint16]]
Offsets = Mapping[str, int]


def settled(claims: Mapping[str, Offsets], samples: Samples, level: str) -> Offsets:
    """The offset by band that holds, from what is claimed (by whom, by band) and from the pixels.

    Claims that agree hold, unless several bands prove that nothing was added. Where claims
    disagree, or there are none, the pixels decide; `SceneError` where they do not tell.
    """
    said = [dict(offsets) for offsets in claims.values()]
    if said and all(each == said[0] for each in said):
        return dict.fromkeys(samples, 0) if _disproven(samples, level) else said[0]
    seen = witnessed(samples, level)
    if seen is not None:
        return dict.fromkeys(samples, seen)
    voices = "; ".join(f"{who} says {sorted(set(each.values()))}" for who, each in claims.items())
    raise SceneError(
        f"whether its numbers carry an offset cannot be told: {voices or 'no metadata'}, and the "
        "pixels do not decide"
    )


def confirmed(own: Offsets, samples: Samples, level: str) -> Offsets:
    """The offset by band of the product's own metadata, which bind where pixels are its own.

    `SceneError` where the pixels prove that they are not: nothing was added to them.
    """
    offsets = {name: own[name] for name in samples}
    if any(offsets.values()) and _disproven(samples, level):
        raise SceneError(
            f"its own metadata say that {sorted(set(offsets.values()))} is to be added to its "
            "numbers, which would make reflectance negative; its files or its metadata are not its"
        )
    return offsets


def witnessed(samples: Samples, level: str) -> int | None:
    """0 or -1000 as the pixels (any shape) of bands show it, None where they do not.

    That nothing was added is proven by pixels so dark that they could not be otherwise. That it
    was is inferred: the darkest ground lies just above 1000 in a band where some nearly always is
    dark. `level` is `L1C` or `L2A`.
    """
    valid = _valid(samples)
    darkest = _darkest(valid)
    if _too_dark(darkest, level):
        return 0
    if "B10" in valid and np.median(valid["B10"]) >= _CIRRUS_WITH:
        return ADDED
    dark = {name: each for name, each in darkest.items() if name in _CAN_BE_DARK}
    infrared = level == "L1C" or any(name in dark for name in _SHORT_WAVE_INFRARED)
    enough = infrared or min((dn.size for dn in valid.values()), default=0) >= (
        _ENOUGH_WITHOUT_INFRARED
    )
    if not dark or not enough:
        return None
    name = min(dark, key=lambda each: dark[each])
    clear = np.median(valid[name]) < _MOSTLY_CLOUD
    return ADDED if clear and _LEAST_WITH <= dark[name] <= _MOST_WITH else None


def _disproven(samples: Samples, level: str) -> bool:
    """Whether the pixels prove metadata wrong that say 1000 was added.

    Against metadata one band is not enough: surface reflectance in shadow can be corrected to less
    than -3 %.
    """
    darkest = _darkest(_valid(samples))
    return len(_too_dark(darkest, level)) >= min(_WITNESSES, len(darkest)) > 0


def _valid(samples: Samples) -> dict[str, npt.NDArray[np.uint16]]:
    """Of each band the numbers with data, where they are enough."""
    valid = {
        name: dn[(dn != NO_DATA_DN) & (dn != SATURATED_DN)].ravel() for name, dn in samples.items()
    }
    return {name: dn for name, dn in valid.items() if dn.size >= _ENOUGH}


def _darkest(valid: Samples) -> dict[str, float]:
    return {name: float(np.percentile(dn, _DARKEST_PERCENT)) for name, dn in valid.items()}


def _too_dark(darkest: Mapping[str, float], level: str) -> list[str]:
    """The bands that cannot have had 1000 added."""
    least = _LEAST_THROUGH_AIR if level == "L1C" else {}
    return [name for name, each in darkest.items() if each < least.get(name, _IMPOSSIBLE)]
