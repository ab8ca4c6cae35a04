"""The table of OPERATIONS.md that says what 1,000 and 50,000 photos a second cost: recomputed from its assumptions."""

from __future__ import annotations

import math
import re

import pytest
import yaml

from tests.conftest import ROOT

SECTION = (ROOT / "kuberay" / "OPERATIONS.md").read_text().split("## How far it goes\n")[1].split("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if line.startswith("| ")]
HOURS = 730  # a month
RATES = (1_000, 50_000)


def number(cell: str) -> float:
    """The first number of a cell."""
    found = re.search(r"\d[\d,]*(\.\d+)?", cell)
    assert found, cell
    return float(found[0].replace(",", ""))


GIVEN = {name: number(value) for name, value, *_ in ROWS if value[0] in "$0123456789" and len(_) == 1}


def row(component: str) -> list[str]:
    """The row of a component: its two costs, what breaks first, what to do."""
    (found,) = (cells for cells in ROWS if cells[0] == component)
    return found[1:]


def gigabytes(rate: int, of: str) -> float:
    """What a month at this rate moves, in GB."""
    return rate * GIVEN[of] * 3600 * HOURS / 1e6


def nodes(rate: int) -> int:
    """GPU nodes: four fifths full, and a spare one."""
    return math.ceil(rate / (GIVEN["load of a node, %"] / 100 * GIVEN["photos a second on a GPU node"])) + 1


def cost(component: str, rate: int) -> float:
    """Dollars a month."""
    if component == "firewall":
        return rate * 3600 * HOURS / 1e6 * GIVEN["firewall, a million requests"]
    if component == "load balancer":
        return gigabytes(rate, "a photo, KB") * GIVEN["load balancer, 1 GB"]
    if component == "traffic between zones":
        crossing = 2 * 2 / 3  # two hops, each to one of three zones
        return gigabytes(rate, "a photo, KB") * crossing * GIVEN["traffic between two zones, 1 GB, both directions"]
    if component == "answers to the Internet":
        return gigabytes(rate, "an answer, KB") * GIVEN["traffic to the Internet, 1 GB"]
    return nodes(rate) * GIVEN["g6.2xlarge with Auto Mode, an hour"] * HOURS


COMPONENTS = ["firewall", "load balancer", "traffic between zones", "answers to the Internet", "GPU nodes"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_costs_follow_from_the_assumptions(component: str) -> None:
    for rate, cell in zip(RATES, row(component), strict=False):
        assert number(cell) == round(cost(component, rate)), f"{component} at {rate}: {cost(component, rate):,.0f}"


def test_the_sum_and_what_is_said_of_it() -> None:
    for rate, cell in zip(RATES, row("**sum**"), strict=False):
        assert number(cell) == sum(round(cost(component, rate)) for component in COMPONENTS)
        assert cost("load balancer", rate) > cost("GPU nodes", rate)


def test_what_smaller_photos_save() -> None:
    (kilobytes, balancer, zones), few = (
        re.findall(r"At (\d+) KB .*\$([\d,]+) and the zones \$([\d,]+)", SECTION)[0],
        RATES[0],
    )
    share = number(kilobytes) / GIVEN["a photo, KB"]
    assert number(balancer) == round(share * cost("load balancer", few))
    assert number(zones) == round(share * cost("traffic between zones", few))


def test_the_sizes_follow_too() -> None:
    few, many = (nodes(rate) for rate in RATES)
    assert f"{few} nodes" in row("GPU nodes")[0]
    assert f"{many} nodes" in row("GPU nodes")[1]
    replicas = 4 * many
    assert f"{round(many * replicas / 5):,} checks a second" in row("HAProxy's checks")[1]
    assert f"{round(few * 4 * few / 5)} checks a second" in row("HAProxy's checks")[0]
    assert f"{2 * 8 * few} vCPUs" in row("quotas")[0]
    assert f"{2 * 8 * many:,} vCPUs" in row("quotas")[1]
    assert (
        f"{number(row('load balancer')[1]) / GIVEN['load balancer, 1 GB'] / HOURS:,.0f} LCU" in row("load balancer")[2]
    )


def test_a_thousand_a_second_fits_what_production_allows() -> None:
    worker = yaml.safe_load((ROOT / "kuberay" / "base" / "rayservice.yaml").read_text())
    (group,) = worker["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert nodes(RATES[0]) <= group["maxReplicas"] < nodes(RATES[1])
