"""What an endpoint takes and answers, as OpenAPI 3.1 from its model's signature, and a page to try it on."""

from __future__ import annotations

from importlib import resources
from typing import Any

from manta.errors import NotFound
from manta.features.wire import item_type
from manta.models.encoding import vector_length
from manta.models.package import Package
from manta.serving.http import PROBLEM, Answer, json_of
from manta.serving.protocols import Call

SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "timestamp": {"type": "string", "format": "date-time"},
    "bool": {"type": "boolean"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "float32": {"type": "number", "format": "float"},
    "float64": {"type": "number", "format": "double"},
}
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
WHY = {
    400: "The request does not fit the model; `errors.fields` names what does not.",
    404: "There is no such model, or version.",
    405: "Another method is meant.",
    413: "The body is too big.",
    415: "The body's content-type is another.",
    500: "A fault of the endpoint's own.",
    503: "The features' store does not answer, or what it holds is too old.",
}


def answer(call: Call) -> Answer:
    """Raises:
    NotFound: the path goes on.
    """
    call.asked.only("GET", "HEAD")
    if call.path == "openapi.json":
        return json_of(describe(call))
    if call.path == "docs":
        page = resources.files("manta.serving").joinpath("try.html").read_bytes()
        return Answer(200, "text/html; charset=utf-8", page)
    raise NotFound(f"there is no {call.path!r:.80} here", hint="GET …/docs, or …/openapi.json")


def describe(call: Call) -> dict[str, Any]:
    """The whole description, for the version that is served."""
    name, loaded = call.endpoint.name, call.loaded
    keys, features = loaded.fields, loaded.service.types
    inputs = loaded.package.inputs
    parameter = {
        "name": "features",
        "in": "query",
        "description": "Whether the answer shows the features it was made from, and how fresh they are.",
        "schema": {"type": "boolean", "default": False},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": loaded.version,
            "description": f"Answers with version {loaded.version} of the model {call.endpoint.model}.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/predict": {
                "post": _operation(
                    "predict",
                    "Predictions by keys, or by rows of features.",
                    {"$ref": "#/components/schemas/Question"},
                    {"$ref": "#/components/schemas/Predictions"},
                    loaded.example,
                )
                | {"parameters": [parameter]}
            },
            f"/v2/models/{name}/infer": {
                "post": _operation(
                    "infer",
                    "The Open Inference Protocol, version 2.",
                    {"$ref": "#/components/schemas/Inference"},
                    {"type": "object"},
                    None,
                )
            },
            f"/v2/models/{name}": {"get": _reading("metadata", "What the model takes and gives.")},
            "/v2/health/ready": {"get": _reading("ready", "Whether it answers.")},
            "/invocations": {
                "post": _operation(
                    "invocations",
                    "MLflow's scoring protocol.",
                    {"$ref": "#/components/schemas/Invocation"},
                    {"type": "object", "properties": {"predictions": {"type": "array"}}},
                    None,
                )
            },
            "/": {"get": _reading("describe", "What is served.")},
        },
        "components": {
            "schemas": {
                "Keys": _row(keys, list(keys), features),
                "Features": _row(inputs, list(inputs), features),
                "Question": {
                    "oneOf": [
                        _only("keys", "#/components/schemas/Keys", call.endpoint.max_rows),
                        _only("rows", "#/components/schemas/Features", call.endpoint.max_rows),
                    ]
                },
                "Predictions": _predictions(loaded.package),
                "Inference": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                    },
                },
                "Invocation": {
                    "type": "object",
                    "properties": {
                        "dataframe_split": {"type": "object"},
                        "dataframe_records": {"type": "array"},
                        "instances": {},
                        "inputs": {},
                    },
                },
            }
        },
    }


def _row(needed: dict[str, str], required: list[str], more: dict[str, str]) -> dict[str, Any]:
    kinds = {**more, **needed}
    properties = {name: _nullable(_schema(kind)) for name, kind in kinds.items()}
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _schema(kind: str) -> dict[str, Any]:
    length, item = vector_length(kind), item_type(kind)
    if length is not None:
        return _list("float32") | {"minItems": length, "maxItems": length}
    return _list(item) if item else SCHEMAS.get(kind, {})


def _list(item: str) -> dict[str, Any]:
    return {"type": "array", "items": _nullable(SCHEMAS.get(item, {}))}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Null is a missing value."""
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def _only(form: str, ref: str, most: int) -> dict[str, Any]:
    one = {"$ref": ref}
    return {
        "type": "object",
        "required": [form],
        "properties": {form: {"anyOf": [one, {"type": "array", "items": one, "maxItems": most}]}},
        "additionalProperties": False,
    }


def _predictions(package: Package) -> dict[str, Any]:
    number = SCHEMAS["float32"]
    properties: dict[str, Any] = {"prediction": number}
    if package.task == "binary":
        properties = {"probability": number, "prediction": {"type": "boolean"}}
    if package.task == "multiclass":
        each = {"type": "object", "required": list(package.classes), "additionalProperties": number}
        properties = {"prediction": {"enum": list(package.classes)}, "probabilities": each}
    return {
        "type": "object",
        "required": ["predictions", "model", "version", "request_id"],
        "properties": {
            "predictions": {
                "type": "array",
                "items": {"type": "object", "required": list(properties), "properties": properties},
            },
            "model": {"type": "string"},
            "version": {"type": "string"},
            "request_id": {"type": "string"},
        },
    }


def _operation(
    name: str, summary: str, body: dict[str, Any], given: dict[str, Any], example: Any
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": body} | ({"example": example} if example is not None else {})
    return _reading(name, summary, given) | {
        "requestBody": {"required": True, "content": {"application/json": content}}
    }


def _reading(name: str, summary: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    refused = {"content": {PROBLEM: {"schema": {"type": "object"}}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {"application/json": {"schema": given or {"type": "object"}}},
            },
            **{str(status): {"description": why} | refused for status, why in WHY.items()},
        },
    }
