"""Options that name classes: by id or name, as text or JSON; and what each class then needs to be reported."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.errors import InvalidParameter
from serve_app.graph import class_thresholds
from serve_app.http import request_options
from serve_app.weights.identity import Weights

NAMES = ("person", "bus", "traffic light", "Fußgänger", "7", "bus", "a,b", " ")
NO, ALL = np.inf, 0.25
WEIGHTS = Weights("road", "0", NAMES, False)


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ({}, [ALL] * 8),
        ({"conf": "0.5"}, [0.5] * 8),
        ({"classes": "0"}, [ALL, NO, NO, NO, NO, NO, NO, NO]),
        ({"classes": ""}, [ALL] * 8),
        ({"classes": "person"}, [ALL, NO, NO, NO, NO, NO, NO, NO]),
        ({"classes": "bus"}, [NO, ALL, NO, NO, NO, ALL, NO, NO]),
        ({"classes": " person , traffic light,3"}, [ALL, NO, ALL, ALL, NO, NO, NO, NO]),
        ({"classes": "Fußgänger"}, [NO, NO, NO, ALL, NO, NO, NO, NO]),
        ({"classes": ["a,b", " ", 0]}, [ALL, NO, NO, NO, NO, NO, ALL, ALL]),
        ({"classes": ["1"]}, [NO, ALL, NO, NO, NO, NO, NO, NO]),
        ({"classes": "7"}, [NO, NO, NO, NO, NO, NO, NO, ALL]),  # an id goes before a name
        ({"conf": '{"person": 0.9}'}, [0.9, ALL, ALL, ALL, ALL, ALL, ALL, ALL]),
        ({"conf": {"bus": 0.5, "5": 0.6}}, [ALL, 0.5, ALL, ALL, ALL, 0.6, ALL, ALL]),
        ({"conf": {"a,b": 0, "0": 1}, "classes": "0,a"}, None),
        ({"conf": {"a,b": 0.0, "0": 1}, "classes": [0, 6]}, [1, NO, NO, NO, NO, NO, 0, NO]),
        ({"conf": ' {"Fu\\u00dfg\\u00e4nger": 0.5}', "classes": "3"}, [NO, NO, NO, 0.5, NO, NO, NO, NO]),
        ({"conf": {}}, [ALL] * 8),
    ],
)
def test_thresholds_of_each_class(given: dict[str, Any], least: list[float] | None) -> None:
    options = request_options.parse(given)
    if least is None:
        with pytest.raises(InvalidParameter, match="no class with the name 'a'"):
            request_options.check(options, WEIGHTS)
        return
    request_options.check(options, WEIGHTS)
    np.testing.assert_array_equal(class_thresholds.of(options, NAMES, 0.25), np.array(least, np.float32))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"classes": "8"}, "`classes`: road has no class with the id 8: its ids are 0 to 7"),
        ({"classes": "Bus"}, "`classes`: road has no class with the name 'Bus'"),
        ({"classes": "0,,1"}, "`classes`: road has no class with the name ''"),
        ({"classes": "-1"}, "`classes`: road has no class with the name '-1'"),
        ({"classes": "0;1"}, "`classes`: road has no class with the name '0;1'"),
        ({"conf": {"car": 0.5}}, "`conf`: road has no class with the name 'car'"),
        ({"conf": '{"99": 0.5}'}, "`conf`: road has no class with the id 99"),
        ({"classes": [-1]}, "`classes`: Input should be greater than or equal to 0"),
        ({"classes": [None]}, "`classes`: Input should be a valid integer"),
        ({"classes": [["bus"]]}, "`classes`: Input should be a valid integer"),
        ({"classes": {"bus": 1}}, "`classes`: Input should be a valid frozenset"),
        ({"classes": "x" * 1001}, "`classes`: String should have at most 1000 characters"),
        ({"classes": "9" * 5000}, "`classes`: "),
        ({"classes": ["a"] * 1001}, "`classes`: must not have more than 1000 classes"),
        ({"conf": {str(i): 0.5 for i in range(1001)}}, "`conf`: must not have more than 1000 classes"),
        ({"conf": {"bus": 1.5}}, "`conf`: Input should be less than or equal to 1"),
        ({"conf": '{"bus": NaN}'}, "`conf`: Input should be a finite number"),
        ({"conf": '{"bus"}'}, "`conf`: is neither a number nor a JSON object"),
        (
            {"conf": '{"bus": 1, "bus": 0}'},
            "`conf`: is neither a number nor a JSON object: the JSON has a key more than",
        ),
        ({"conf": "{" * 100_000}, "`conf`: is neither"),
        ({"conf": [0.5]}, "`conf`: Input should be a valid number"),
        ({"conf": None}, "`conf`: Input should be a valid number"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        request_options.check(request_options.parse(given), WEIGHTS)
    assert str(error.value).startswith(says)


def found(client: httpx.Client, photo: bytes, **given: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/predict", params=given, files={"file": photo})
    results: list[dict[str, Any]] = answer.raise_for_status().json()["images"][0]["results"]
    return results


def test_classes_by_name_and_a_confidence_for_each(client: httpx.Client, bus: bytes) -> None:
    every = found(client, bus)
    persons = [r for r in every if r["name"] == "person"]
    buses = [r for r in every if r["name"] == "bus"]
    assert persons
    assert buses
    assert found(client, bus, classes="person") == persons
    assert found(client, bus, classes="bus,person") == [r for r in every if r["name"] in ("bus", "person")]
    assert found(client, bus, conf='{"person": 1}') == [r for r in every if r["name"] != "person"]
    best = persons[0]["confidence"]
    only_best = {"conf": f'{{"person": {best - 0.001}, "bus": 1}}', "classes": "person,bus"}
    assert found(client, bus, **only_best) == persons[:1]
    for unknown in ({"classes": "Bus"}, {"conf": '{"bicycle path": 0.5}'}):
        answer = client.post("/v1/predict", params=unknown, files={"file": bus})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
