"""The plan: what is fresh is kept, what is missing or stale is run, and what lies downstream follows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from manta.connectors.files import Files
from manta.connectors.kafka import Kafka
from manta.definitions import (
    Column,
    Contract,
    Definition,
    Endpoint,
    Examples,
    FeatureRepo,
    FeatureTable,
    Ingest,
    Job,
    Lookup,
    Materialize,
    Ref,
    StreamFeatures,
    TimeSplit,
    Training,
    ViewInfo,
    XGBoost,
    digest,
)
from manta.errors import DefinitionInvalid, NotFound
from manta.ledger.endpoints import EndpointRow
from manta.ledger.runs import Run, State, Version
from manta.plan import Action, Held, Plan, needed, plan
from manta.project import Described, Project, _check_references, _check_streams

AT = datetime(2026, 1, 1, tzinfo=UTC)
INGEST = Ingest(
    dataset="raw", source=Files(path="*.csv"), contract=Contract(columns={"a": Column(type="int64")})
)
TABLE = FeatureTable(dataset="rates", inputs_from=("raw",), fn="jobs.rates:rates", key=("a",), time="t")
OTHER = FeatureTable(dataset="facts", inputs_from=("raw",), fn="jobs.rates:facts", key=("a",))
REPO = FeatureRepo(
    views=(
        ViewInfo(name="rates", dataset="rates", ttl_seconds=60, fingerprint="1"),
        ViewInfo(name="facts", dataset="facts", ttl_seconds=0, fingerprint="2"),
    ),
    services={"v1": ("rates",)},
    fingerprint="r",
)
ONLINE = Materialize(features="v1")
TRAINING = Training(
    model="late",
    fn="jobs.late:train",
    module="jobs.late:Net",
    examples=Examples(dataset="raw", label="y", time="t"),
    features="v1",
    split=TimeSplit(test_from=AT),
)
ENDPOINT = Endpoint(model="late", features="v1")
ALL: tuple[Definition, ...] = (TRAINING, ONLINE, REPO, OTHER, TABLE, INGEST, ENDPOINT)


def project(*definitions: Definition, source: str = "s1", code: str = "c1") -> Project:
    described = tuple(
        Described(definition=d.to_json(), fingerprint=digest([d.to_json(), code]), where="jobs")
        for d in definitions or ALL
    )
    return Project(name="p", package="z", described=described, sources={"raw": source})


def done(of: Project) -> Held:
    """What is held once each job of it has run, by a simulation that only follows the plan's order."""
    held = Held()
    for number, step in enumerate(plan(of, held).steps, start=1):
        if step.kind in ("endpoint", "lookup"):
            continue
        definition, fingerprint = of.jobs()[step.name]
        inputs = tuple(
            Version(kind=ref.kind, name=ref.name, version=of.sources[step.name])
            if ref.kind == "source"
            else held.heads[ref]
            for ref in of.inputs(definition)
        )
        outputs = tuple(Version(kind=r.kind, name=r.name, version=str(number)) for r in definition.outputs())
        held.heads.update({version.ref: version for version in outputs})
        run = made(number, step.name, fingerprint, State.SUCCEEDED, inputs=inputs, outputs=outputs)
        held.last[step.name] = held.succeeded[step.name] = run
    for name, (endpoint, fingerprint) in of.endpoints().items():
        held.endpoints[name] = EndpointRow(
            project="p",
            name=name,
            definition=endpoint.to_json(),
            package="z",
            fingerprint=fingerprint,
            state="READY",
            served={"version": "1"},
            message="",
            changed_at=AT,
        )
    return held


def made(number: int, job: str, fingerprint: str, state: State, **more: Any) -> Run:
    return Run(
        id=number,
        project="p",
        job=job,
        kind="k",
        definition={},
        fingerprint=fingerprint,
        package="z",
        state=state,
        created_at=AT,
        **more,
    )


def actions(of: Plan) -> dict[str, Action]:
    # An endpoint may bear the name of the training whose model it serves.
    return {
        f"{step.kind} {step.name}" if step.kind == "endpoint" else step.name: step.action for step in of.steps
    }


def running(of: Plan) -> set[str]:
    return {step.name for step in of.steps if step.action is Action.RUN}


def test_all_is_run_at_first_each_after_what_it_reads() -> None:
    made_plan = plan(project(), Held())
    assert running(made_plan) == {"raw", "rates", "facts", "features", "online", "late"}
    order = [step.name for step in made_plan.steps]
    for step in made_plan.steps:
        assert all(
            order.index(need) < order.index(step.name) for need in step.needs if step.kind != "endpoint"
        )
    needs = {step.name: set(step.needs) for step in made_plan.steps if step.kind != "endpoint"}
    # The service has the view of rates only, so nothing waits for facts.
    assert needs["late"] == {"raw", "features", "rates"}
    assert needs["online"] == {"features", "rates"}
    assert actions(made_plan)["endpoint late"] is Action.DEPLOY


def test_nothing_is_done_when_nothing_changed() -> None:
    made_plan = plan(project(), done(project()))
    assert made_plan.empty
    assert set(actions(made_plan).values()) == {Action.KEEP}


def test_a_changed_source_touches_all_that_comes_from_it() -> None:
    made_plan = plan(project(source="s2"), done(project()))
    assert running(made_plan) == {"raw", "rates", "facts", "online", "late"}
    assert set(made_plan.touches["raw"]) == {"rates", "facts", "online", "late", "endpoint late"}
    assert set(made_plan.touches["facts"]) == set()


def test_a_look_up_door_follows_what_is_registered() -> None:
    of = project(*ALL, Lookup(features=("v1",)))
    step = next(step for step in plan(of, Held()).steps if step.kind == "lookup")
    assert (step.action, step.needs) == (Action.DEPLOY, ("features",))
    held = done(of)
    assert plan(of, held).empty
    changed = project(*ALL, Lookup(features=("v1",), max_rows=5))
    assert [step.name for step in plan(changed, held).steps if step.action is Action.DEPLOY] == ["lookup"]
    gone = [step for step in plan(project(), held).steps if step.action is Action.REMOVE]
    assert [(step.name, step.kind) for step in gone] == [("lookup", "lookup")]
    with pytest.raises(DefinitionInvalid, match="nothing in the project produces"):
        _check_references(project(*ALL, Lookup(features=("v2",))))


STREAM = StreamFeatures(
    dataset="rates",
    source=Kafka(servers="127.0.0.1:9092", topic="t"),
    contract=Contract(columns={"a": Column(type="int64"), "t": Column(type="timestamp")}),
    features="v1",
)
PUSHED = REPO.replace(views=tuple(view.replace(pushed=view.name == "rates") for view in REPO.views))


def test_a_stream_comes_after_the_service_and_before_what_reads_its_dataset() -> None:
    of = project(STREAM, PUSHED, ONLINE, OTHER, INGEST)
    of = of.model_copy(update={"sources": {"raw": "s1", "rates": "offsets"}})
    _check_references(of)
    order = [step.name for step in plan(of, Held()).steps]
    assert order.index("features") < order.index("rates") < order.index("online")
    assert plan(of, done(of)).empty


def test_a_stream_whose_service_does_not_read_it_or_would_lose_it_is_refused() -> None:
    _check_streams(project(STREAM, PUSHED))
    with pytest.raises(DefinitionInvalid, match="rates online as rows come, and it is not pushed to"):
        _check_streams(project(STREAM, REPO))
    with pytest.raises(DefinitionInvalid, match="no view of which reads 'other'"):
        _check_streams(project(STREAM.replace(name="other", dataset="other"), PUSHED))


def test_a_changed_definition_touches_what_is_downstream_only() -> None:
    changed = FeatureTable(**TABLE.model_dump() | {"partitions": 3})
    definitions = [changed if d is TABLE else d for d in ALL]
    assert running(plan(project(*definitions), done(project()))) == {"rates", "online", "late"}


def test_changed_code_alone_is_a_change() -> None:
    made_plan = plan(project(code="c2"), done(project()))
    assert running(made_plan) == {"raw", "rates", "facts", "features", "online", "late"}
    assert all("code" in s.because or "new" in s.because for s in made_plan.steps if s.action is Action.RUN)


def test_a_new_version_made_by_hand_makes_its_readers_stale() -> None:
    held = done(project())
    ref = Ref("dataset", "raw")
    newer = Version(kind="dataset", name="raw", version="99")
    last = held.succeeded["raw"].model_copy(update={"outputs": (newer,)})
    held.heads[ref] = newer
    held.succeeded["raw"] = last
    assert running(plan(project(), held)) == {"rates", "facts", "online", "late"}


def test_a_run_at_work_is_followed_not_doubled() -> None:
    fingerprint = project().jobs()["raw"][1]
    held = Held(last={"raw": made(1, "raw", fingerprint, State.RUNNING)})
    held.active["raw"] = held.last["raw"]
    steps = {step.name: step for step in plan(project(), held).steps if step.kind != "endpoint"}
    assert (steps["raw"].action, steps["raw"].run) == (Action.FOLLOW, 1)
    assert steps["rates"].needs == ("raw",)


def test_a_run_of_older_code_is_not_followed() -> None:
    held = Held(active={"raw": made(1, "raw", "older", State.RUNNING)})
    assert "raw" in running(plan(project(), held))


def test_a_failed_run_is_tried_again_and_named() -> None:
    fingerprint = project().jobs()["raw"][1]
    held = Held(last={"raw": made(7, "raw", fingerprint, State.FAILED, message="no file\nmore")})
    step = next(step for step in plan(project(), held).steps if step.name == "raw")
    assert step.action is Action.RUN
    assert "run 7 failed: no file" in step.because


def test_a_run_with_parameters_does_not_stand_for_the_definition() -> None:
    held = done(project())
    held.succeeded["late"] = held.succeeded["late"].model_copy(update={"params": {"epochs": 1}})
    assert running(plan(project(), held)) == {"late"}


ASKED = TRAINING.replace(
    name="late-trees", fn=None, module=None, trainer=XGBoost(), examples=TRAINING.examples, on_apply=False
)


def test_what_only_runs_when_asked_is_left_alone_and_named() -> None:
    of = project(*ALL, ASKED)
    _check_references(of)  # of one model, two trainings
    found = plan(of, Held())
    assert "late-trees" not in running(found)
    assert found.asked == ("late-trees",)
    needs = {step.name: set(step.needs) for step in found.steps if step.kind == "endpoint"}
    assert needs == {"late": {"late", "online"}}
    assert "late-trees" not in {name for touched in found.touches.values() for name in touched}
    assert "late-trees" in running(plan(of, Held(), only=["late-trees"]))


def test_what_is_asked_for_runs_when_what_an_apply_runs_needs_it() -> None:
    after = Job(name="after", fn="jobs.late:after", needs=("late-trees",))
    assert {"late-trees", "after"} <= running(plan(project(*ALL, ASKED, after), Held()))
    alone = tuple(d for d in ALL if d is not TRAINING)
    found = plan(project(*alone, ASKED), Held())
    assert "late-trees" not in running(found)
    assert actions(found)["endpoint late"] is Action.DEPLOY


def test_a_version_by_another_training_of_the_model_makes_none_stale() -> None:
    held = done(project())
    held.heads[Ref("model", "late")] = Version(kind="model", name="late", version="77")
    assert plan(project(*ALL, ASKED), held).empty


def test_an_endpoint_that_is_gone_from_the_project_is_removed() -> None:
    without = tuple(d for d in ALL if d is not ENDPOINT)
    assert actions(plan(project(*without), done(project())))["endpoint late"] is Action.REMOVE


def test_a_circle_is_refused() -> None:
    one = FeatureTable(dataset="one", inputs_from=("two",), fn="jobs.x:x", key=("a",))
    two = FeatureTable(dataset="two", inputs_from=("one",), fn="jobs.x:x", key=("a",))
    with pytest.raises(DefinitionInvalid, match="one → two"):
        plan(project(one, two), Held())


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(NotFound) as error:
        plan(project(), Held(), only=["rats"])
    assert "rates" in error.value.hint


PREPARE = Job(name="prepare", fn="jobs.x:prepare")
CHECK = Job(name="check", fn="jobs.x:check", needs=("prepare", "rates"))
REPORT = Job(name="report", fn="jobs.x:report", needs=("check",))


def test_what_a_job_needs_comes_before_it_beside_what_it_reads() -> None:
    order = [step.name for step in plan(project(*ALL, REPORT, CHECK, PREPARE), Held()).steps]
    assert order.index("prepare") < order.index("check") < order.index("report")
    assert order.index("raw") < order.index("rates") < order.index("check")


def test_what_is_needed_and_fresh_is_not_run_again() -> None:
    of = project(*ALL, REPORT, CHECK, PREPARE)
    first = needed(of, Held(), "report")
    assert {step.name for step in first} == {"prepare", "rates", "check"}
    assert {step.action for step in first} == {Action.RUN}
    assert first[-1].name == "check"
    held = done(of)
    assert {s.action for s in needed(of, held, "report")} == {Action.KEEP}
    del held.succeeded["prepare"], held.last["prepare"]
    steps = {step.name: step for step in needed(of, held, "report")}
    assert {name: step.action for name, step in steps.items()} == {
        "prepare": Action.RUN,
        "rates": Action.KEEP,
        "check": Action.RUN,
    }
    assert steps["check"].needs == ("prepare",)
    assert needed(of, held, "rates") == ()


def test_what_is_needed_and_at_work_is_followed() -> None:
    of = project(*ALL, REPORT, CHECK, PREPARE)
    held = done(of)
    working = made(99, "prepare", of.jobs()["prepare"][1], State.RUNNING)
    del held.succeeded["prepare"]
    held.last["prepare"] = held.active["prepare"] = working
    steps = {step.name: step for step in needed(of, held, "check")}
    assert (steps["prepare"].action, steps["prepare"].run) == (Action.FOLLOW, 99)


def test_a_need_that_is_not_there_or_goes_in_a_circle_is_refused() -> None:
    with pytest.raises(DefinitionInvalid, match="'check' needs prepare"):
        plan(project(CHECK), Held())
    circle = [Job(name=a, fn="jobs.x:x", needs=(b,)) for a, b in ("ab", "ba")]
    with pytest.raises(DefinitionInvalid, match="need one another"):
        plan(project(*circle), Held())


# --- what a change of the features breaks -------------------------------------------------------------------

TYPES = {"v1": {"join key a": "int64", "rates.mean": "float64", "rates.last": "string"}}
SERVED = {"version": "3"}


def with_features(types: dict[str, dict[str, str]], *views: ViewInfo, **more: Any) -> Project:
    repo = REPO.replace(
        types=types,
        views=views or REPO.views,
        fingerprint=digest([types, [view.model_dump() for view in views]]),
        **more,
    )
    return project(TRAINING, ONLINE, repo, OTHER, TABLE, INGEST, ENDPOINT)


def served(of: Project, version: str = "3") -> Held:
    held = done(of)
    repo = next(job for job, _ in of.jobs().values() if isinstance(job, FeatureRepo))
    held.succeeded["features"] = held.succeeded["features"].model_copy(update={"definition": repo.to_json()})
    row = held.endpoints["late"].model_copy(
        update={"definition": ENDPOINT.to_json(), "served": {"version": version} if version else {}}
    )
    held.endpoints["late"] = row
    return held


def broken(types: dict[str, str] | None, **more: Any) -> list[str]:
    found = plan(
        with_features({"v1": types} if types is not None else {}, **more), served(with_features(TYPES))
    )
    return [each.what for each in found.breaks]


def test_what_is_served_must_keep_its_features_and_keys() -> None:
    same = TYPES["v1"]
    assert broken({**same, "rates.more": "int64"}) == []
    assert broken({name: kind for name, kind in same.items() if name != "rates.last"}) == [
        "rates.last is gone"
    ]
    assert broken({**same, "rates.mean": "float32"}) == ["rates.mean is float32, was float64"]
    assert broken({**same, "join key a": "string"}) == ["join key a is string, was int64"]
    assert broken({**same, "join key b": "int64"}) == ["join key b is new"]
    assert broken(None, services={}) == ["the service is gone"]


def test_a_break_names_the_endpoint_and_its_model() -> None:
    (found,) = plan(with_features({"v1": {}}), served(with_features({"v1": {"rates.mean": "int64"}}))).breaks
    assert str(found) == "v1: rates.mean is gone; endpoint late (late@3) reads it"


def test_nothing_breaks_where_nothing_is_served_or_changed() -> None:
    less = with_features({"v1": {}})
    assert plan(less, served(with_features(TYPES), version="")).breaks == ()
    assert plan(with_features(TYPES), served(with_features(TYPES))).breaks == ()
    assert plan(less, Held()).breaks == ()
    gone = project(TRAINING, ONLINE, REPO.replace(types={"v1": {}}, fingerprint="x"), OTHER, TABLE, INGEST)
    assert plan(gone, served(with_features(TYPES))).breaks == ()  # the endpoint goes too


def test_a_changed_view_says_which_services_models_and_endpoints_it_touches() -> None:
    other = ViewInfo(name="rates", dataset="rates", ttl_seconds=90, fingerprint="other")
    new = ViewInfo(name="fresh", dataset="rates", ttl_seconds=0, fingerprint="3")
    found = plan(with_features(TYPES, other, new), served(with_features(TYPES)))
    assert found.changed_views == {"facts (gone)": (), "fresh (new)": (), "rates (changed)": ("v1",)}
    assert {"online", "late", "model late", "endpoint late"} <= set(found.touches["features"])
