"""Choosing the dates of a tile, against brute force and case by case."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2pairs.errors import SourceError
from s2pairs.scenes import Grid, Listing, Scene, choose_dates
from s2pairs.tiles import TileId

TILE = TileId.parse("31TCJ")
START = datetime(2016, 1, 1, tzinfo=UTC)


def scene(day: float, **changes: object) -> Scene:
    acquired = START + timedelta(days=day)
    made = Scene(
        product=f"S2A_{acquired:%Y%m%dT%H%M%S}",
        tile=TILE,
        level="L1C",
        acquired=acquired,
        generated=acquired + timedelta(days=1),
        datatake=f"GS2A_{acquired:%Y%m%dT%H%M%S}",
        baseline="02.04",
        cloud_cover=1.0,
        quantification=10_000,
        add_offset={},
        grid=Grid(32631, 300000, 4900020, 64, 64),
        assets={"B04": "B04.jp2"},
        simulated=False,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def choose(scenes: list[Scene], count: int, **options: object) -> Listing:
    given_ = {"max_cloud": 2.0, **options}
    return choose_dates(TILE, Listing(tuple(scenes), ()), count=count, **given_)  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    days=st.lists(st.integers(0, 399), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_the_chosen_dates_have_the_least_sum_of_distances(
    days: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(days)))
    listing = choose([scene(day) for day in days], count, start=START, end=START + timedelta(400))
    middles = [(index + 0.5) * 400 / count for index in range(count)]

    def cost(chosen: tuple[int, ...]) -> float:
        return sum(abs(day - middle) for day, middle in zip(sorted(chosen), middles, strict=True))

    chosen = [(each.acquired - START).days for each in listing.scenes]
    assert chosen == sorted(chosen)
    assert cost(tuple(chosen)) == pytest.approx(min(map(cost, combinations(days, count))))
    assert len(listing.left_out) == len(days) - count


def test_without_a_period_the_products_make_it() -> None:
    listing = choose([scene(day) for day in range(0, 361, 10)], 4)
    days = [(each.acquired - START).days for each in listing.scenes]
    for day, middle in zip(days, (45, 135, 225, 315), strict=True):
        assert abs(day - middle) <= 5


def test_the_period_has_a_first_moment_and_ends_before_its_last() -> None:
    listing = choose(
        [scene(d) for d in (0, 1, 2, 3)], 2, start=START + timedelta(1), end=START + timedelta(3)
    )
    assert [(each.acquired - START).days for each in listing.scenes] == [1, 2]
    assert [entry.reason.partition(":")[0] for entry in listing.left_out] == 2 * [
        "outside the period"
    ]


def test_cloud_at_the_limit_passes_and_an_unknown_one_does_not() -> None:
    scenes = [
        scene(0, cloud_cover=2.0),
        scene(1, cloud_cover=2.0001),
        scene(2, cloud_cover=float("nan")),
    ]
    listing = choose(scenes, 1)
    assert listing.scenes == (scenes[0],)
    assert all(entry.reason.startswith("too cloudy") for entry in listing.left_out)


def test_of_a_datatake_the_highest_baseline_then_the_newest_stays() -> None:
    old = scene(0)
    again = replace(old, product="again", baseline="05.00")
    newest = replace(again, product="newest", generated=again.generated + timedelta(days=9))
    listing = choose([newest, old, again, scene(50)], 2)
    assert listing.scenes[0] == newest
    assert {entry.product for entry in listing.left_out} == {old.product, "again"}
    assert all("same datatake as newest" in entry.reason for entry in listing.left_out)


def test_baselines_compare_as_numbers() -> None:
    early, late = scene(0, baseline="09.99"), scene(0, baseline="10.00", product="late")
    assert choose([early, late], 1).scenes == (late,)


def test_of_one_day_the_clearest_stays() -> None:
    morning, noon = scene(3.4, cloud_cover=1.5), scene(3.5, cloud_cover=0.1)
    listing = choose([morning, noon], 1)
    assert listing.scenes == (noon,)
    assert "same day" in listing.left_out[0].reason


def test_a_product_that_is_there_twice_counts_once() -> None:
    one = scene(0)
    copy = replace(one, assets={"B04": "again/B04.jp2"})
    listing = choose([one, copy, scene(50)], 2)
    assert listing.scenes[0] is one
    (entry,) = listing.left_out
    assert (entry.product, entry.reason[:6]) == (one.product, "a copy")


@pytest.mark.parametrize("later", [0.0, 0.01, 30.0])
def test_both_levels_in_one_place_are_an_error(later: float) -> None:
    top = scene(0)
    surface = replace(scene(later), product="surface", level="L2A", datatake=top.datatake)
    with pytest.raises(SourceError, match=r"mixes .*L1C: S2A_.*, L2A: surface.*a folder of its"):
        choose([top, surface], 1)


def test_of_a_split_datatake_the_fuller_part_stays() -> None:
    """Two parts share datatake and day; the smaller one was generated later."""
    fuller = scene(0, coverage=0.7)
    smaller = replace(
        fuller, product="smaller", coverage=0.3, generated=fuller.generated + timedelta(hours=1)
    )
    for order in ([fuller, smaller], [smaller, fuller]):
        listing = choose([*order, scene(50)], 2)
        assert listing.scenes[0] is fuller
        (entry,) = listing.left_out
        assert entry.product == "smaller"
        assert entry.reason == (
            f"same datatake as {fuller.product}, which sees more of the tile (70%, not 30%)"
        )


def test_a_newer_version_wins_though_its_footprint_is_drawn_a_little_smaller() -> None:
    old = scene(0, coverage=0.98)
    new = replace(old, product="new", coverage=0.97, baseline="05.00")
    listing = choose([old, new], 1)
    assert listing.scenes == (new,)
    assert "the newer version" in listing.left_out[0].reason


def test_of_one_day_a_fuller_pass_beats_a_clearer_sliver() -> None:
    full, sliver = scene(3.4, cloud_cover=1.5), scene(3.5, cloud_cover=0.0, coverage=0.1)
    listing = choose([sliver, full], 1)
    assert listing.scenes == (full,)
    assert "which sees more of the tile (100%, not 10%)" in listing.left_out[0].reason


def test_too_few_dates_name_the_tile_and_count_the_reasons() -> None:
    scenes = [scene(0), scene(1, cloud_cover=40), scene(2, cloud_cover=50), scene(900)]
    with pytest.raises(SourceError) as caught:
        choose(scenes, 3, end=START + timedelta(days=400))
    message = str(caught.value)
    assert "tile 31TCJ has 1 usable dates of the 3 needed: 4 products found" in message
    assert "2 too cloudy" in message
    assert "1 outside the period" in message
    with pytest.raises(SourceError, match="31TCJ has no product"):
        choose([], 1)
