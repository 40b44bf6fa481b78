"""Plans out of plans, each with where its looks are taken from."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from s2pairs.cube import Cube, plan_of
from s2pairs.errors import CubeError
from s2pairs.filling import Origins
from s2pairs.patches import join_tables, without_conflicts
from s2pairs.plan import Plan


@dataclass(frozen=True)
class Piece:
    """A plan, and where its looks are taken from."""

    plan: Plan
    origins: Origins


def of_cube(cube: Cube) -> Piece:
    """A cube as it is."""
    rows, dates = len(cube), cube.dates
    # a worker may stand in another folder
    place = cube.path.absolute() if isinstance(cube.path, Path) else cube.path
    origins = Origins(
        cubes=((place, cube.plan_digest),),
        cube=np.zeros(rows, dtype=np.intp),
        row=np.arange(rows),
        date=np.tile(np.arange(dates), (rows, 1)),
    )
    return Piece(plan_of(cube), origins)


def of_products(plan: Plan) -> Piece:
    """A plan whose looks all come from products."""
    return Piece(plan, Origins.none(len(plan.table), plan.layout.dates))


def joined(first: Piece, second: Piece, parameters: Mapping[str, Any]) -> Piece:
    """The patches of both, those of `second` behind.

    A patch of `second` is left out where its ground, or part of it, is in `first`, and where one
    of another split is nearer than the gap between splits. `CubeError` if bands, level or the
    number of dates differ.
    """
    _check_alike(first.plan, second.plan, ("bands", "level", "dates"))
    keep = without_conflicts(second.plan.table, first.plan.table)
    plan = Plan(
        bands=first.plan.bands,
        level=first.plan.level,
        table=join_tables([first.plan.table, second.plan.table.take(keep)]),
        acquired=np.concatenate([first.plan.acquired, second.plan.acquired[keep]]),
        product=np.concatenate([first.plan.product, second.plan.product[keep]]),
        parameters=parameters,
        attributes=_joined_attributes(first.plan.attributes, second.plan.attributes),
    )
    return Piece(plan, first.origins.before(second.origins.take(keep)))


def with_dates(cube: Cube, more: Plan, parameters: Mapping[str, Any]) -> Piece:
    """The patches of a cube with the dates of `more`, a plan of the same patches, in order of time.

    `CubeError` if bands or level differ, or a patch would have one product twice.
    """
    before = of_cube(cube)
    _check_alike(before.plan, more, ("bands", "level"))
    for old, new in zip(before.plan.product, more.product, strict=True):
        twice = set(old.tolist()) & set(new.tolist())
        if twice:
            raise CubeError(f"{cube.path} has {min(twice)} already; choose another period")
    acquired = np.concatenate([before.plan.acquired, more.acquired], axis=1)
    product = np.concatenate([before.plan.product, more.product], axis=1)
    added = np.full(more.product.shape, -1)
    date = np.concatenate([before.origins.date, added], axis=1)
    order = np.argsort(acquired, axis=1, kind="stable")
    acquired, product, date = (
        np.take_along_axis(each, order, axis=1) for each in (acquired, product, date)
    )
    plan = replace(
        before.plan,
        acquired=acquired,
        product=product,
        parameters=parameters,
        attributes=_joined_attributes(before.plan.attributes, more.attributes),
    )
    return Piece(plan, replace(before.origins, date=date))


def _check_alike(first: Plan, second: Plan, parts: Sequence[str]) -> None:
    told: dict[str, Callable[[Plan], tuple[str, object]]] = {
        "bands": lambda plan: ("bands", ", ".join(plan.bands)),
        "level": lambda plan: ("the level", plan.level),
        "dates": lambda plan: ("the number of dates", plan.layout.dates),
    }
    for part in parts:
        (what, one), (_, other) = told[part](first), told[part](second)
        if one != other:
            raise CubeError(
                f"looks of one kind can stand in a cube; {what} differ: {one} in the first, "
                f"{other} in the second; take the second from what is like the first"
            )


def _joined_attributes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the group; lists hold what either has, once."""
    lists = {
        name: list(dict.fromkeys([*first[name], *second[name]]))
        for name in ("products", "products_left_out")
    }
    used = set(lists["products"])
    # what the one left out the other may use
    lists["products_left_out"] = [
        entry for entry in lists["products_left_out"] if entry.partition(": ")[0] not in used
    ]
    return {**first, **lists, "notice": _joined_notice([first["notice"], second["notice"]])}


def _joined_notice(notices: Sequence[str]) -> str:
    """Whether any is simulated, and the years of all."""
    parts = dict.fromkeys(part for notice in notices for part in notice.split("; "))
    years = sorted({year for part in parts for year in re.findall(r"\[(\d{4})\]", part)})
    plain = [part for part in parts if not re.search(r"\[\d{4}\]", part)]
    listed = ", ".join(f"[{year}]" for year in years)
    modified = [f"contains modified Copernicus Sentinel data {listed}"] if years else []
    return "; ".join([*plain, *modified])
