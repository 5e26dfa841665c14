"""`/openapi.json`: made of the bodies that the endpoints check, so that it says what they do."""

from typing import Any

from pydantic.json_schema import models_json_schema

from omnidiff_jax import __version__
from omnidiff_jax.serving.bodies import (
    Body,
    ChatRequest,
    EditRequest,
    ImageRequest,
    SpeechRequest,
    TranscriptionRequest,
)
from omnidiff_jax.serving.limits import Limits
from omnidiff_jax.serving.sound import FORMATS

_REFS = "#/components/schemas/{model}"
# Path -> body, names of its files and whether each must be there, media types of the answer.
_POSTED: dict[str, tuple[type[Body], dict[str, bool], tuple[str, ...]]] = {
    "/v1/chat/completions": (ChatRequest, {}, ("application/json", "text/event-stream")),
    "/v1/images/generations": (ImageRequest, {}, ("application/json", "text/event-stream")),
    "/v1/images/edits": (EditRequest, {"image": True, "mask": False}, ("application/json", "text/event-stream")),
    "/v1/audio/speech": (
        SpeechRequest,
        {},
        (*dict.fromkeys(kind for kind, _ in FORMATS.values()), "text/event-stream"),
    ),
    "/v1/audio/transcriptions": (
        TranscriptionRequest,
        {"file": True},
        ("application/json", "text/plain", "text/event-stream"),
    ),
}
_READ = {
    "/v1/models": ("application/json", ("401",)),
    "/v1/models/{name}": ("application/json", ("401", "404")),
    "/health": ("application/json", ("503",)),
    "/health/ready": ("application/json", ("503",)),
    "/health/live": ("application/json", ("503",)),
    "/metrics": ("text/plain", ("401",)),
    "/openapi.json": ("application/json", ()),
}
_FAILURES = ("400", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504")
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(limits: Limits, model: str) -> dict[str, Any]:
    """The description of a server of `model` with such limits, OpenAPI 3.1."""
    bodies = [form for form, _, _ in _POSTED.values()]
    _, found = models_json_schema([(form, "validation") for form in bodies], ref_template=_REFS)
    schemas = {**found["$defs"], "Error": _ERROR}
    schemas["ChatRequest"]["properties"]["messages"]["maxItems"] = limits.turns
    for form in bodies:
        fields = schemas[form.__name__]["properties"]
        fields["model"] = {"enum": [model]}
        if "n" in fields:
            fields["n"]["anyOf"][0]["maximum"] = limits.answers
    paths: dict[str, Any] = {}
    for path, (form, files, kinds) in _POSTED.items():
        paths[path] = {"post": _posted(form, files, kinds, schemas)}
    for path, (kind, failures) in _READ.items():
        operation: dict[str, Any] = {"responses": {"200": _content([kind]), **_failing(failures)}}
        if "{name}" in path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"enum": [model]}}]
        paths[path] = {"get": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "omnidiff", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _posted(form: type[Body], files: dict[str, bool], kinds: tuple[str, ...], schemas: dict[str, Any]) -> Any:
    schema: dict[str, Any] = {"$ref": _REFS.format(model=form.__name__)}
    sent = "application/json"
    if files:
        sent, whole = "multipart/form-data", schemas[form.__name__]
        for field in whole["properties"].values():  # a form has no null
            field.pop("default", None)
            if "anyOf" in field:
                field["anyOf"] = [kind for kind in field["anyOf"] if kind.get("type") != "null"]
        for name, needed in files.items():
            whole["properties"][name] = {"type": "string", "format": "binary"}
            if needed:
                whole["required"] = [*whole.get("required", []), name]
    return {
        "requestBody": {"required": True, "content": {sent: {"schema": schema}}},
        "responses": {"200": _content(kinds), **_failing(_FAILURES)},
    }


def _content(kinds: Any) -> dict[str, Any]:
    return {"description": "As asked.", "content": {kind: {} for kind in kinds}}


def _failing(statuses: Any) -> dict[str, Any]:
    schema = {"$ref": _REFS.format(model="Error")}
    failed = {"description": "Why not.", "content": {"application/json": {"schema": schema}}}
    return dict.fromkeys(statuses, failed)
