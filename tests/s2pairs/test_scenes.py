"""Choosing the dates of a tile, against brute force and case by case."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2pairs.errors import SourceError
from s2pairs.scenes import Grid, Listing, Scene, choose_dates, choose_dates_by_region
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


@settings(deadline=None, max_examples=60)
@given(
    days=st.lists(st.integers(0, 59), min_size=1, max_size=12),
    shares=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 0.97, 0.985, 1.0]), min_size=3, max_size=3),
        min_size=12,
        max_size=12,
    ),
    count=st.integers(1, 3),
)
def test_each_region_takes_the_days_that_are_clear_there(
    days: list[int], shares: list[list[float]], count: int
) -> None:
    """Limits, one scene a day and the regular step, against brute force in each region alone."""
    scenes = [
        scene(day, product=f"P{number:02}", cloud_cover=80.0, datatake=f"D{number}")
        for number, day in enumerate(days)
    ]
    of_product = {each.product: shares[number] for number, each in enumerate(scenes)}
    period = {"start": START, "end": START + timedelta(60)}
    limits = {"count": count, "max_cloud": 2.0, **period}
    usable = {
        region: {days[n] for n in range(len(days)) if shares[n][region] >= 0.98}
        for region in range(3)
    }
    enough = {region for region, found in usable.items() if len(found) >= count}
    listing_of = Listing(tuple(scenes), ())

    def choose_() -> Listing:
        return choose_dates_by_region(
            TILE,
            listing_of,
            [0, 1, 2],
            lambda each: of_product[each.product],
            **limits,  # type: ignore[arg-type]
        )

    if not enough:
        with pytest.raises(SourceError, match=r"31TCJ has \d usable dates in its best region"):
            choose_()
        return
    listing = choose_()
    assert set(listing.of_region) == enough
    middles = [(index + 0.5) * 60 / count for index in range(count)]
    for region, chosen in listing.of_region.items():
        taken = [(each.acquired - START).days for each in chosen]
        assert taken == sorted(set(taken))
        assert all(of_product[each.product][region] >= 0.98 for each in chosen)
        for each in chosen:  # the clearest of its day
            same = [s for s in scenes if s.acquired == each.acquired]
            best = max(of_product[s.product][region] for s in same)
            assert best - of_product[each.product][region] <= 0.01
        costs = [
            sum(abs(day - middle) for day, middle in zip(sorted(some), middles, strict=True))
            for some in combinations(usable[region], count)
        ]
        cost = sum(abs(day - middle) for day, middle in zip(taken, middles, strict=True))
        assert cost == pytest.approx(min(costs))
    used = {each.product for chosen in listing.of_region.values() for each in chosen}
    assert {each.product for each in listing.scenes} == used
    assert {entry.product for entry in listing.left_out} == set(of_product) - used
