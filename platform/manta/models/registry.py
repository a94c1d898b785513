"""MLflow: what each training did, and the versions of each model. The only module that imports it.

MLflow mirrors: which version is the champion is the ledger's to say, and a replica reads packages without
MLflow. Every write is idempotent by the run's key, so that a run that was killed anywhere can be executed
again.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from manta.errors import Unavailable
from manta.models import package
from manta.models.encoding import vector_length
from manta.secrets import redactor, resolve_url, without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

KEY_TAG = "manta.run_key"
MODEL_FOLDER = "model"
INPUT = "input_example.json"
PARAM_LIMIT = 6000  # characters that MLflow keeps of a parameter
BATCH = 1000  # metrics that MLflow takes in one request; parameters and tags: 100

# Without these, a server that does not answer is asked for minutes, and usage is sent to MLflow's makers.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Registry:
    """The registry of one project at an MLflow tracking URL.

    A model is registered as ``<project>.<model>``, for one MLflow may serve several projects; its runs are in
    the experiment ``<project>``.
    """

    def __init__(self, url: str, project: str) -> None:
        self.url = url
        self.project = project
        self._made: MlflowClient | None = None

    def check(self) -> None:
        """Cheap, and without importing MLflow.

        Raises:
            Unavailable: MLflow does not answer.
        """
        if not self.url.startswith(("http://", "https://")):
            return  # a store of its own, e.g. sqlite:///…
        try:
            httpx.get(f"{resolve_url(self.url)}/health", timeout=5).raise_for_status()
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def load(self) -> None:
        """Import MLflow, which takes a second or two; otherwise done when it is first needed."""
        with self._answering():
            import mlflow.pyfunc  # noqa: F401

    def name(self, model: str) -> str:
        return f"{self.project}.{model}"

    def record(
        self,
        run_key: str,
        job: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        reports: Sequence[Mapping[str, Any]],
        tags: Mapping[str, str],
        figures: Path,
        location: Path,
    ) -> str:
        """Log a training, its figures and its package; return the id of MLflow's run. Executed again, it
        writes over what it wrote.

        Args:
            reports: what the loop reported, in order; its numbers become curves.
            figures: a folder. location: the model package.
        """
        with self._answering() as client:
            run = self._run(client, run_key, job)
            _log(client, run, params, metrics, reports, tags)
            client.log_artifacts(run, str(figures), "figures")
            with tempfile.TemporaryDirectory() as folder:
                _describe(Path(folder), location, run)
                client.log_artifacts(run, folder, MODEL_FOLDER)
            client.log_artifacts(run, str(location), MODEL_FOLDER)
            client.set_terminated(run)
        return run

    def conclude(self, run: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Add what was decided about a run."""
        with self._answering() as client:
            _log(client, run, {}, metrics, (), tags)

    def attach(self, run: str, file: Path) -> None:
        """Keep a file with a run, under its name; over one that is there."""
        with self._answering() as client:
            client.log_artifact(run, str(file))

    def registered(self, model: str, run: str) -> str | None:
        """The version that holds the package of MLflow's run ``run``; None when there is none."""
        with self._answering() as client:
            found = self._version_of(client, model, run)
            return str(found.version) if found else None

    def register(self, model: str, run: str, tags: Mapping[str, str]) -> str:
        """The version of ``model`` that holds the package of MLflow's run ``run``, made if need be."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

        name = self.name(model)
        with self._answering() as client:
            found = self._version_of(client, model, run)
            if found is not None:
                return str(found.version)
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
            source = f"{client.get_run(run).info.artifact_uri}/{MODEL_FOLDER}"
            made = client.create_model_version(name, source, run, tags=dict(tags), await_creation_for=0)
            return str(made.version)

    def withdraw(self, model: str, run: str) -> None:
        """Undo :meth:`register`, if it was done."""
        with self._answering() as client:
            found = self._version_of(client, model, run)
            if found is not None:
                client.delete_model_version(self.name(model), found.version)

    def mirror(self, model: str, alias: str, version: str) -> None:
        """Show in MLflow where the ledger points the alias."""
        with self._answering() as client:
            client.set_registered_model_alias(self.name(model), alias, version)

    def _version_of(self, client: MlflowClient, model: str, run: str) -> ModelVersion | None:
        found = client.search_model_versions(f"name = '{self.name(model)}' and run_id = '{run}'")
        return found[0] if found else None

    def _run(self, client: MlflowClient, run_key: str, job: str) -> str:
        experiment = self._experiment(client)
        found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{run_key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        made = client.create_run(experiment, run_name=f"{job} {run_key}", tags={KEY_TAG: run_key})
        return str(made.info.run_id)

    def _experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.project)
        if found is None:
            try:
                return str(client.create_experiment(self.project))
            except MlflowException:
                # Another training made it meanwhile; if it is not that, the next line says so.
                found = client.get_experiment_by_name(self.project)
                if found is None:
                    raise
        return str(found.experiment_id)

    @contextmanager
    def _answering(self) -> Iterator[MlflowClient]:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import requests
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            if self._made is None:
                url = resolve_url(self.url)
                self._made = MlflowClient(url, url)
            yield self._made
        except (MlflowException, requests.RequestException) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"MLflow at {without_passwords(self.url)} does not answer as it should: "
            f"{redactor.text(without_passwords(str(error)))}",
            hint="`manta up` starts it; `manta status` tells whether it is up",
        )


def _log(
    client: MlflowClient,
    run: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    reports: Sequence[Mapping[str, Any]],
    tags: Mapping[str, str],
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    at = int(time.time() * 1000)
    figures = [Metric(name, value, at, 0) for name, value in metrics.items()]
    for step, report in enumerate(reports, start=1):
        figures += [
            Metric(f"loop/{name}", float(value), at, step)
            for name, value in report.items()
            if isinstance(value, int | float)
        ]
    kept = [Param(name, _text(value)[:PARAM_LIMIT]) for name, value in params.items()]
    said = [RunTag(name, value) for name, value in tags.items()]
    client.log_batch(run, figures[:BATCH], kept[:100], said[:100])
    for start in range(BATCH, len(figures), BATCH):
        client.log_batch(run, figures[start : start + BATCH])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _describe(folder: Path, location: Path, run: str) -> None:
    """Write what makes a package a model in MLflow's eyes: `mlflow.pyfunc.load_model` and its pages."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    card = json.loads((location / package.CARD).read_text())
    kinds = {
        "string": DataType.string,
        "int64": DataType.long,
        "bool": DataType.boolean,
        "float32": DataType.double,
        "float64": DataType.double,
    }
    taken = Schema(
        [
            ColSpec(Array(kinds["float32"]) if vector_length(kind) else kinds[kind], name, required=False)
            for name, kind in card["inputs"].items()
        ]
    )
    given: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.float, each) for each in card.get("classes") or (None,)
    ]
    model = Model(
        artifact_path=MODEL_FOLDER,
        run_id=run,
        signature=ModelSignature(inputs=taken, outputs=Schema(given)),
        saved_input_example_info=_show_input(folder, card),
    )
    model.add_flavor("onnx", onnx_version=installed("onnx"), data=package.GRAPH, code=None)
    pyfunc.add_to_model(model, loader_module="manta.models.package", python_env="python_env.yaml")
    model.save(str(folder / "MLmodel"))
    # What answers with it: manta.models.package needs no more; MLflow's own server asks for the other two.
    names = ("manta-ml", "onnxruntime", "numpy", "mlflow", "pandas")
    (folder / "requirements.txt").write_text("".join(f"{name}=={installed(name)}\n" for name in names))
    (folder / "python_env.yaml").write_text(
        f'python: "{platform.python_version()}"\ndependencies:\n- -r requirements.txt\n'
    )


def _show_input(folder: Path, card: Mapping[str, Any]) -> dict[str, str] | None:
    """Write a row that the model takes, as MLflow keeps its examples; what MLmodel says of it."""
    sample = card.get("sample")
    if not sample:
        return None
    row = {"columns": list(card["inputs"]), "data": [[sample[name] for name in card["inputs"]]]}
    (folder / INPUT).write_text(json.dumps(row))
    (folder / f"serving_{INPUT}").write_text(json.dumps({"dataframe_split": row}))
    return {
        "artifact_path": INPUT,
        "serving_input_path": f"serving_{INPUT}",
        "type": "dataframe",
        "pandas_orient": "split",
    }
