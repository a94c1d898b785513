"""The predict path without Ray: parse, look up, override, predict, answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manta.errors import FeaturesUnavailable, ModelUnavailable, NotFound, RequestInvalid
from manta.serving import core
from manta.serving.core import Loaded
from manta.serving.http import Asked
from manta.serving.protocols import Call, predict
from tests.unit.serving import tiny
from tests.unit.serving.tiny import ENDPOINT, KEYS, probability


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trips")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def loaded(root: Path) -> Loaded:
    return core.load(ENDPOINT, tiny.write_all(root, bias=0.25, version="3"))


async def unread() -> bytes:
    raise AssertionError("the door has read it")


def ask(loaded: Loaded, body: Any, *, features: bool = False) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    query = "features=true" if features else ""
    asked = Asked("POST", "predict", {"content-type": "application/json"}, query, unread)
    answered = predict.answer(Call(ENDPOINT, loaded, asked, "predict", content, "r1"))
    answer: dict[str, Any] = json.loads(answered.content)
    return answer


def one(loaded: Loaded, **changes: Any) -> dict[str, Any]:
    """The prediction for one row of keys, with its features."""
    row = {name: value for name, value in (KEYS | changes).items() if value is not ...}
    [prediction] = ask(loaded, {"keys": row}, features=True)["predictions"]
    assert isinstance(prediction, dict)
    return prediction


def refused(loaded: Loaded, body: Any) -> RequestInvalid:
    with pytest.raises(RequestInvalid) as error:
        ask(loaded, body)
    return error.value


# --- answers ---------------------------------------------------------------------------------------------


def test_an_answer_has_the_version_that_gave_it(loaded: Loaded) -> None:
    answer = ask(loaded, {"keys": KEYS})
    assert answer == {
        "predictions": [{"probability": pytest.approx(probability(0.25, 5.0)), "prediction": True}],
        "model": "trip",
        "version": "3",
        "request_id": "r1",
    }


def test_one_row_answers_as_it_does_among_many(loaded: Loaded) -> None:
    rows = [KEYS, KEYS | {"driver": "bob"}, KEYS | {"distance": 200.0}, KEYS | {"driver": None}]
    together = ask(loaded, {"keys": rows}, features=True)["predictions"]
    alone = [ask(loaded, {"keys": [row]}, features=True)["predictions"][0] for row in rows]
    assert together == alone
    expected = [probability(0.25, 5.0), probability(0.25), probability(0.25, 5.0, 1.0), probability(0.25)]
    assert [each["probability"] for each in together] == pytest.approx(expected)


def test_no_rows_no_predictions(loaded: Loaded) -> None:
    assert ask(loaded, {"keys": []})["predictions"] == []
    assert ask(loaded, {"rows": []})["predictions"] == []


def test_a_key_never_seen_is_answered_and_said_so(loaded: Loaded) -> None:
    prediction = one(loaded, driver="nobody")
    assert prediction["probability"] == pytest.approx(probability(0.25))
    assert prediction["features"]["rating"] is None
    assert prediction["status"] == {"drivers": "NOT_FOUND", "zones": "PRESENT"}
    assert prediction["fresh_as_of"] == {"drivers": None, "zones": "2026-01-02T12:00:00Z"}


def test_a_value_too_old_for_when_it_is_asked_is_not_used(loaded: Loaded) -> None:
    assert one(loaded, asked_at="2026-01-02T13:00:00Z")["status"]["drivers"] == "PRESENT"
    late = one(loaded, asked_at="2026-01-02T13:00:01Z")
    assert late["status"] == {"drivers": "OUTSIDE_MAX_AGE", "zones": "PRESENT"}
    assert late["probability"] == pytest.approx(probability(0.25))


def test_a_time_without_a_zone_is_utc_and_zones_are_obeyed(loaded: Loaded) -> None:
    assert one(loaded, asked_at="2026-01-02T12:30:00") == one(loaded, asked_at="2026-01-02T12:30:00Z")
    assert one(loaded, asked_at="2026-01-02T15:30:00+03:00") == one(loaded, asked_at="2026-01-02T12:30:00Z")
    assert one(loaded, asked_at="2026-01-02T12:30:00-08:00")["status"]["drivers"] == "OUTSIDE_MAX_AGE"
    assert one(loaded, asked_at="2026-01-02T15:30:00+03:00")["features"]["hour"] == 12


def test_a_feature_given_with_the_keys_overrides_the_look_up(loaded: Loaded) -> None:
    assert one(loaded, rating=-20)["probability"] == pytest.approx(probability(0.25, -20.0))
    assert one(loaded, rating=None)["probability"] == pytest.approx(probability(0.25))
    assert one(loaded, rating=-20)["features"]["rating"] == -20
    assert one(loaded, far=1.0)["probability"] == pytest.approx(probability(0.25, 5.0, 1.0))
    # Given for one row of two, it leaves the other's alone.
    both = ask(loaded, {"keys": [KEYS, KEYS | {"rating": 0}]})["predictions"]
    assert [each["probability"] for each in both] == pytest.approx(
        [probability(0.25, 5.0), probability(0.25)]
    )


def test_full_rows_need_no_look_up(loaded: Loaded) -> None:
    rows = [{"rating": 3, "city": "Bonn", "far": 1.0}, {"rating": None, "city": None, "far": None}]
    answer = ask(loaded, {"rows": rows})["predictions"]
    assert [each["probability"] for each in answer] == pytest.approx(
        [probability(0.25, 3.0, 1.0), probability(0.25)]
    )
    # What the service gives and the model does not take may be there.
    more = rows[0] | {"price": 3, "opened": "2026-01-01", "hour": 4, "engines": "", "process": 1}
    assert ask(loaded, {"rows": more})["predictions"] == answer[:1]


def test_rows_show_their_features_too_when_asked(loaded: Loaded) -> None:
    [prediction] = ask(loaded, {"rows": {"rating": 3, "city": None, "far": 1.0}}, features=True)[
        "predictions"
    ]
    assert prediction["features"] == {"rating": 3.0, "city": None, "far": 1.0}


def test_the_threshold_is_the_endpoints(loaded: Loaded) -> None:
    strict = ENDPOINT.replace(threshold=0.9)
    [prediction] = core.by_keys(strict, loaded, [KEYS], show_features=False)
    assert prediction == {"probability": pytest.approx(probability(0.25, 5.0)), "prediction": False}


# --- requests that do not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"keys": {"driver": NaN}}', "not JSON"),
        (b'{"keys": {"distance": 1e400}}', "not JSON"),
        (b'{"keys": "\xff"}', "not JSON"),
        (b'{"keys": ' * 50_000, "not JSON"),
        (b'{"keys": {"zone": ' + b"1" * 5000 + b"}}", "not JSON"),
        ([], "either keys or rows"),
        ({}, "either keys or rows"),
        (3, "either keys or rows"),
        ({"keys": {}, "rows": {}}, "either keys or rows"),
        ({"instances": []}, "either keys or rows"),
        ({"keys": 3}, "must be an object or a list"),
        ({"keys": [3]}, "must be an object or a list"),
        ({"keys": [[]]}, "must be an object or a list"),
        ({"keys": None}, "must be an object or a list"),
        ({"keys": [{}] * 1001}, "1001 rows are more than the 1000"),
    ],
)
def test_a_body_of_another_form_is_refused(loaded: Loaded, body: Any, says: str) -> None:
    assert says in refused(loaded, body).message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"driver": ...}, "'driver' is missing"),
        ({"asked_at": ...}, "'asked_at' is missing"),
        ({"drivr": "ann", "driver": ...}, "'drivr' is not known (did you mean 'driver'?)"),
        ({"driver": 3}, "'driver' must be a string, not 3"),
        ({"driver": ["ann"]}, "'driver' must be a string"),
        ({"driver": {}}, "'driver' must be a string"),
        ({"zone": "7"}, "'zone' must be a whole number, not '7'"),
        ({"zone": 7.0}, "'zone' must be a whole number, not 7.0"),
        ({"zone": True}, "'zone' must be a whole number, not True"),
        ({"zone": 2**63}, "'zone' must fit into int64"),
        ({"distance": "far"}, "'distance' must be a number"),
        ({"distance": True}, "'distance' must be a number"),
        ({"distance": 10**400}, "'distance'"),
        ({"urgent": 1}, "'urgent' must be true or false"),
        ({"asked_at": "tomorrow"}, "'asked_at' must be a time in ISO 8601"),
        ({"asked_at": 1767355200}, "'asked_at' must be a time in ISO 8601"),
        ({"asked_at": None}, "'asked_at' must be a time in ISO 8601, like 2013-12-31T18:00:00Z, not null"),
        ({"asked_at": "0001-01-01T00:00:00+14:00"}, "'asked_at'"),
        ({"asked_at": "9999-12-31T23:59:59-14:00"}, "'asked_at'"),
        ({"rating": "good"}, "'rating' must be a number"),
        ({"rating": 10**400}, "'rating'"),
        ({"city": 3}, "'city' must be a string"),
        ({"driver": "x" * 100_000, "zone": "7"}, "'zone' must be a whole number"),
    ],
)
def test_a_row_that_does_not_fit_names_the_field_and_what_it_takes(
    loaded: Loaded, change: dict[str, Any], says: str
) -> None:
    row = {name: value for name, value in (KEYS | change).items() if value is not ...}
    error = refused(loaded, {"keys": row})
    assert says in error.message
    assert len(error.message) < 300
    [field] = error.detail["fields"]
    assert field in error.message
    # Among others it is named by its place too.
    assert "of row 1 " in refused(loaded, {"keys": [KEYS, row]}).message


def test_missing_fields_say_all_that_is_needed(loaded: Loaded) -> None:
    assert refused(loaded, {"keys": {}}).hint == "give driver, zone, asked_at, distance, urgent"
    assert refused(loaded, {"rows": {"rating": 1.0}}).hint == "give rating, city, far"


def test_a_problem_object_tells_it_all(loaded: Loaded) -> None:
    problem = refused(loaded, {"keys": {}}).problem()
    assert problem["status"] == 400
    assert problem["code"] == "request_invalid"
    assert problem["errors"] == {"fields": ["driver"]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*KEYS, "rating", "city", "far", "opened", "price", "nothing"])
times = st.datetimes(timezones=st.none() | st.timezones()).map(lambda at: at.isoformat())
edges = st.sampled_from(
    [10**400, -(10**400), 2**63, 2**31, "0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-14:00"]
)
bodies = st.one_of(
    json_values,
    st.fixed_dictionaries({}, optional={"keys": json_values, "rows": json_values}),
    st.builds(
        lambda form, rows: {form: rows},
        st.sampled_from(["keys", "rows"]),
        st.lists(
            st.dictionaries(names, edges | times | json_values, max_size=2).map(lambda row: KEYS | row),
            max_size=3,
        ),
    ),
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies, features=st.booleans())
def test_whatever_the_body_it_is_answered_or_refused(loaded: Loaded, body: Any, features: bool) -> None:
    try:
        answer = ask(loaded, body, features=features)
    except RequestInvalid as error:  # and no other: all others are answered with 500
        json.dumps(error.problem()).encode()
    else:
        assert all(0 <= each["probability"] <= 1 for each in answer["predictions"])


@hypothesis_settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60))
def test_whatever_the_bytes_they_are_answered_or_refused(loaded: Loaded, content: bytes) -> None:
    with contextlib.suppress(RequestInvalid):
        ask(loaded, content)


# --- loading ---------------------------------------------------------------------------------------------


def test_the_example_of_a_description_can_be_sent(loaded: Loaded) -> None:
    assert ask(loaded, loaded.example)["version"] == "3"
    assert loaded.fields == {
        "driver": "string",
        "zone": "int64",
        "asked_at": "timestamp",
        "distance": "float64",
        "urgent": "bool",
    }


def test_what_cannot_be_loaded_says_why(root: Path, loaded: Loaded, tmp_path: Path) -> None:
    good = tiny.config(root, 0.25, "3")
    with pytest.raises(ModelUnavailable, match="holds no model package"):
        core.load(ENDPOINT, good | {"location": str(tmp_path)})
    with pytest.raises(ModelUnavailable, match="digest"):
        core.load(ENDPOINT, good | {"digest": "0" * 64})
    with pytest.raises(FeaturesUnavailable, match="is gone"):
        core.load(ENDPOINT, good | {"manifest": str(tmp_path / "none.json")})
    with pytest.raises(NotFound, match="trip_v1"):
        core.load(ENDPOINT.replace(features="trip_v2"), good)
    location, digest = tiny.write_package(tmp_path, 0.0, {"rating": "float32", "mood": "float32"})
    with pytest.raises(ModelUnavailable, match="does not give: mood"):
        core.load(ENDPOINT, good | {"location": location, "digest": digest})
    elsewhere = tiny.write_manifest(tmp_path / "manifest.json", tmp_path / "none.db")
    with pytest.raises(FeaturesUnavailable, match="cannot be read"):
        core.load(ENDPOINT, good | {"manifest": elsewhere})


# --- models that answer something else ------------------------------------------------------------------


def test_a_class_is_answered_by_its_name_with_all_probabilities(root: Path, loaded: Loaded) -> None:
    asked = core.load(ENDPOINT, tiny.config(root, 0.5, "4", "multiclass"))
    logits = np.array([1.0, 0.0, -1.0])  # 0.5, and half of a rating of 5 tenths
    expected = np.exp(logits) / np.exp(logits).sum()
    [by_key] = ask(asked, {"keys": KEYS})["predictions"]
    assert by_key == {
        "prediction": "far",
        "probabilities": {
            name: pytest.approx(p) for name, p in zip(tiny.CLASSES, expected.tolist(), strict=True)
        },
    }
    rows = [{"rating": 5.0, "city": None, "far": None}, {"rating": -50.0, "city": None, "far": None}]
    one, other = ask(asked, {"rows": rows}, features=True)["predictions"]
    assert (one["prediction"], one["probabilities"]) == (by_key["prediction"], by_key["probabilities"])
    assert (other["prediction"], other["features"]["rating"]) == ("nowhere", -50.0)
    assert asked.package.predict({"rating": [], "city": [], "far": []}).shape == (0, 3)
    assert loaded.package.predict({"rating": [], "city": [], "far": []}).shape == (0,)


def test_a_number_is_answered_as_it_is(root: Path) -> None:
    asked = core.load(ENDPOINT, tiny.config(root, 12.5, "5", "regression"))
    assert ask(asked, {"keys": KEYS})["predictions"] == [{"prediction": 13.0}]
    late = KEYS | {"asked_at": "2026-01-03T12:30:00Z"}
    assert ask(asked, {"keys": [KEYS, late]})["predictions"][1]["prediction"] == 12.5


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_threshold_is_for_one_probability(root: Path, task: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"is a {task} model, and trips has a threshold of 0.7"):
        core.load(ENDPOINT.replace(threshold=0.7), tiny.config(root, 0.5, "6", task))
