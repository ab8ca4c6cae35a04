"""A trace against replicas that come late: Serve's own autoscaler in simulated time, traces, and what is missed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from loadtests.capacity import trace
from loadtests.capacity.autoscaler import Autoscaler
from loadtests.capacity.plan import PRODUCTION
from loadtests.capacity.rehearsal import cold_start
from loadtests.capacity.replay import Cluster, Delays, Replayed
from loadtests.capacity.station import Line, Station
from loadtests.capacity.trace import Trace
from loadtests.load.slo import Objective

FIXED = np.array([1.0])
TENTH = Line(0.1, 0.0, 0.0, FIXED)
STATION = Station(Line(0.0, 0.0, 0.0, FIXED), TENTH, TENTH)
SCALING = yaml.safe_load((PRODUCTION / "serve.yaml").read_text())["applications"][0]["deployments"][0][
    "autoscaling_config"
]
SMALL = SCALING | {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2, "downscale_delay_s": 60}


def test_the_autoscaler_waits_as_it_is_told() -> None:
    """Ten requests for a target of two: five replicas, four at most; not before upscale_delay_s, and downscale_delay_s."""
    autoscaler, wanted = Autoscaler(SMALL), dict[float, int]()
    for tenth in range(1200):
        now = tenth / 10
        if tenth % 20 == 0:
            autoscaler.record("r0", now, 10.0 if now < 30 else 0.0, 0.0)
            autoscaler.push(["r0"], now)
        wanted[now] = autoscaler.decide(["r0"], now)
    first_up = next(now for now, number in wanted.items() if number > 1)
    assert first_up == pytest.approx(SMALL["upscale_delay_s"], abs=0.2)
    assert wanted[20.0] == 4
    last_up = max(now for now, number in wanted.items() if number > 1)
    # Look-back: the average falls below what four are for within 10 s of the end of the load.
    assert 30 + 60 <= last_up <= 30 + 60 + SMALL["look_back_period_s"]


def test_photos_that_wait_count_as_they_do_in_serve() -> None:
    autoscaler = Autoscaler(SMALL | {"policy": SCALING["policy"]})
    for now in np.arange(0, 12, 0.5).tolist():
        autoscaler.record("r0", now, 1.0, 1.0)
        autoscaler.push(["r0"], now)
        wanted = autoscaler.decide(["r0"], now)
    assert wanted == 2, "one request is no reason, a second of waiting is"


def replayed(load: Trace, delays: Delays, per_node: int = 1, nodes: int = 1, seed: int = 0) -> Replayed:
    rng = np.random.default_rng(seed)
    return Cluster(STATION, Autoscaler(SMALL), delays, per_node, nodes, rng).run(load.arrivals(rng), load.length)


QUICK = Delays(replica_s=5, ask_s=0, node_s=0, image_s=0, idle_s=30)
SLOW = Delays(replica_s=5, ask_s=5, node_s=60, image_s=30, idle_s=30)
RISE = Trace((0, 60, 240, 600), (3, 24, 3))


def test_the_same_seed_is_the_same_replay() -> None:
    one, two = replayed(RISE, QUICK), replayed(RISE, QUICK)
    assert one.moments == two.moments
    assert one.outcome.latency.tolist() == two.outcome.latency.tolist()
    assert replayed(RISE, QUICK, seed=1).outcome.latency.tolist() != one.outcome.latency.tolist()


def test_replicas_follow_the_load_up_and_down() -> None:
    running = {moment.seconds: moment.running for moment in replayed(RISE, QUICK).moments}
    assert running[59.0] == 1
    assert running[120.0] >= 3, "24 a second are more than two can do"
    assert running[599.0] == 1


def test_a_node_that_must_come_first_costs_its_time_and_its_objective() -> None:
    quick, slow = replayed(RISE, QUICK), replayed(RISE, SLOW)
    first = [next(m.seconds for m in one.moments if m.running > 1) for one in (quick, slow)]
    assert first[1] - first[0] == pytest.approx(95, abs=2), "ask, node, image"
    objective = Objective(500, min_requests=0)
    late = [np.mean(one.outcome.latency > 0.5) for one in (quick, slow)]
    assert 0 < late[0] < 0.7 * late[1]
    assert 60 <= slow.breaches(objective)[0][0] <= 120, "from when the load rises"


def test_nodes_with_room_are_used_and_empty_ones_go() -> None:
    roomy = replayed(RISE, SLOW, per_node=4)
    assert max(moment.nodes for moment in roomy.moments) == 1
    narrow = replayed(RISE, SLOW)
    assert max(moment.nodes for moment in narrow.moments) >= 3
    assert narrow.moments[-1].nodes == 1
    assert roomy.node_hours < narrow.node_hours < 4 * 600 / 3600


def test_a_flash_crowd_is_refused_when_the_queues_are_full() -> None:
    station = Station(STATION.ready, TENTH, TENTH, room=20)
    rng = np.random.default_rng(0)
    load = trace.flash_crowd(100, 600)
    replay = Cluster(station, Autoscaler(SMALL), SLOW, 1, 1, rng).run(load.arrivals(rng), load.length)
    assert len(replay.outcome.refused) > 0
    (why,) = [why for start, _, why in replay.breaches(Objective(5000, min_requests=0)) if start <= 300][-1:]
    assert any("failed" in one for one in why)


def test_arrivals_are_poisson() -> None:
    """As many as the rate says; and as irregular: the variance of counts is their mean."""
    times = trace.steady(50, 400).arrivals(np.random.default_rng(0))
    counts = np.histogram(times, bins=400)[0]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.2)
    assert (np.diff(times) >= 0).all()


def test_arrivals_follow_the_trace() -> None:
    load = Trace((100, 200, 400), (10, 40))
    times = load.arrivals(np.random.default_rng(0))
    assert np.sum(times < 100) == pytest.approx(1000, rel=0.1)
    assert np.sum(times >= 100) == pytest.approx(8000, rel=0.05)
    assert load.rate_at(np.array([0.0, 99.0, 100.0, 299.0])).tolist() == [10, 10, 40, 40]


@pytest.mark.parametrize("name", trace.GENERATED)
def test_a_generated_day_has_its_peak_and_its_length(name: str) -> None:
    day = trace.GENERATED[name](80.0)
    assert max(day.rates) == pytest.approx(80)
    assert min(day.rates) < 0.3 * 80
    assert day.length == 86_400


def test_a_trace_survives_its_csv(tmp_path: Path) -> None:
    day = trace.flash_crowd(12.5)
    trace.write(day, tmp_path / "day.csv")
    assert trace.read(tmp_path / "day.csv") == day


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "columns", id="empty"),
        pytest.param("time,rate\n0,1\n", "columns", id="other columns"),
        pytest.param("seconds,requests_per_s\n0,1\n", "rising", id="no end"),
        pytest.param("seconds,requests_per_s\n0,1\n0,1\n", "rising", id="time stands still"),
        pytest.param("seconds,requests_per_s\n0,-1\n9,0\n", "rising", id="fewer than none"),
        pytest.param("seconds,requests_per_s\n0,many\n9,0\n", "could not convert", id="no number"),
    ],
)
def test_a_csv_that_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        trace.read(tmp_path / "bad.csv")


def test_the_cold_start_is_read_from_what_was_seen() -> None:
    seen = [(0.0, 1, 1), (10.0, 3, 1), (16.0, 3, 2), (18.0, 3, 3), (60.0, 1, 3), (61.0, 1, 1)]
    assert cold_start(seen) == pytest.approx(7)
