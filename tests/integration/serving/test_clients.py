"""An endpoint's door behind a real server, asked by the clients of others, unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
import uvicorn
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from tritonclient.utils import InferenceServerException

from manta.serving.asgi import Asgi
from tests.conftest import free_ports
from tests.unit.serving import tiny
from tests.unit.serving.tiny import KEYS, probability

BIAS = 0.25
WANTED = [probability(BIAS, 5.0, 1.0), probability(BIAS, 0.0, 1.0)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tiny.opened(tmp_path_factory.mktemp("trips"), BIAS, "3") as door:
        port = free_ports().serve
        config = uvicorn.Config(Asgi(door), host="127.0.0.1", port=port, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as made:
        yield made


def tensor(name: str, values: np.ndarray, datatype: str, binary: bool) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def features(*, binary: bool) -> list[triton.InferInput]:
    missing = np.nan if binary else 0.0
    return [
        tensor("rating", np.array([5.0, missing], np.float32), "FP32", binary),
        tensor("city", np.array([b"Ulm", "Köln".encode()], object), "BYTES", binary),
        tensor("far", np.array([1.0, 1.0], np.float64), "FP64", binary),
    ]


def test_tritons_client_finds_the_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("trips")
    assert client.is_model_ready("trips", "3")
    assert not client.is_model_ready("cars")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    described = client.get_model_metadata("trips")
    assert [each["name"] for each in described["inputs"]] == ["rating", "city", "far"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_tritons_client_infers(
    client: triton.InferenceServerClient, binary: bool, packed: str | None
) -> None:
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("probability", "prediction")
    ]
    found = client.infer(
        "trips",
        features(binary=binary),
        outputs=outputs,
        request_id="mine",
        request_compression_algorithm=packed,
    )
    assert found.as_numpy("probability") == pytest.approx(WANTED, abs=1e-6)
    assert found.as_numpy("prediction").tolist() == [True, True]
    assert found.get_response()["id"] == "mine"


def test_tritons_client_by_keys(client: triton.InferenceServerClient) -> None:
    kinds = {
        str: ("BYTES", object),
        int: ("INT64", np.int64),
        float: ("FP64", np.float64),
        bool: ("BOOL", bool),
    }
    inputs = []
    for name, value in KEYS.items():
        datatype, dtype = kinds[type(value)]
        held = value.encode() if isinstance(value, str) else value
        inputs.append(tensor(name, np.array([[held]], dtype), datatype, True))
    found = client.infer("trips", inputs)
    assert found.as_numpy("probability") == pytest.approx([probability(BIAS, 5.0)], abs=1e-6)


def test_tritons_client_is_told_what_is_wrong(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="'rating' is missing"):
        client.infer("trips", features(binary=True)[1:])
    with pytest.raises(InferenceServerException, match="version '9' of trips is not served"):
        client.infer("trips", features(binary=True), model_version="9")


def test_mlflows_client(address: str) -> None:
    host, _, port = address.partition(":")
    client = ScoringServerClient(host, port)
    client.wait_server_ready()
    assert client.get_version().startswith("manta")
    frame = pd.DataFrame({"rating": [5.0, None], "city": ["Ulm", None], "far": [1.0, 1.0]})
    assert client.invoke(frame).get_predictions().iloc[:, 0].tolist() == pytest.approx(WANTED, abs=1e-6)
    keys = pd.DataFrame([KEYS])
    found = client.invoke(keys).get_predictions().iloc[:, 0].tolist()
    assert found == pytest.approx([probability(BIAS, 5.0)], abs=1e-6)
    with pytest.raises(Exception, match=r"error code 400.*'rating' is missing"):
        client.invoke(frame.drop(columns="rating"))


def test_whatever_is_sent_nothing_breaks(address: str, tmp_path: Path) -> None:
    """Against its own description, by schemathesis; MANTA_SCHEMA_EXAMPLES=200 sends more."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}/openapi.json"),
            *("--checks", checks, "--phases", "coverage,fuzzing", "--continue-on-failure", "--no-color"),
            *("--max-examples", os.environ.get("MANTA_SCHEMA_EXAMPLES", "4"), "--seed", "7"),
            *("--warnings", "off"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert re.search(r"[0-9]{2,} generated", done.stdout), done.stdout
    assert httpx.get(f"http://{address}/ready").json() == {"ready": True, "version": "3"}
