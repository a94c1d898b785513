"""Every error manta raises on purpose, as one tree.

    MantaError
    ├── InvalidInput                 what the user gave cannot be used               (400)
    │   ├── DefinitionInvalid        a definition, or the project that holds it      (422)
    │   ├── SettingsInvalid          cluster/<profile>.yaml or a MANTA_* variable    (400)
    │   ├── SourceUnreadable         a source is missing, or has another shape       (422)
    │   ├── SecretUnreadable         a named secret is not where it is said to be    (422)
    │   ├── ContractBroken           too many rows refused, a column gone            (422)
    │   │   └── SchemaChanged        a contract is not that of the dataset's versions (422)
    │   ├── RequestInvalid           an HTTP request                                 (400)
    │   │   ├── TooLarge             its body                                        (413)
    │   │   ├── WrongMediaType       its content-type                                (415)
    │   │   └── WrongMethod          its verb                                        (405)
    │   ├── TrainingInvalid          examples or a loop that cannot be trained       (422)
    │   ├── ModelRefused             a foreign model that may not be loaded          (422)
    │   └── KeyReused                an idempotency key, sent with another request   (422)
    ├── Unauthenticated              no credentials, or bad ones                     (401)
    ├── Forbidden                    what one may see and not do                     (403)
    ├── NotFound                     a name that nothing answers to                  (404)
    ├── Conflict                     somebody else was first                         (409)
    │   ├── InProgress               the same request, sent before, is at work       (409)
    │   └── Unacknowledged           an apply that breaks what is served             (409)
    ├── TooMany                      requests, or failed log-ins, in a short time    (429)
    ├── GateFailed                   a model was refused promotion                   (409)
    ├── SkewFound                    features differ online from the as-of join      (409)
    ├── ExtraMissing                 an optional dependency is not installed         (501)
    ├── Unavailable                  a part of the platform does not answer          (503)
    │   ├── PlatformDown             `manta up` has not been run, or died            (503)
    │   ├── PortInUse                another process holds a port manta needs        (503)
    │   ├── FeaturesUnavailable      the online store or its manifest                (503)
    │   ├── FeaturesStale            what is online is older than the service allows (503)
    │   └── ModelUnavailable         no version of the model can be loaded           (503)
    └── RunFailed                    a run ended otherwise than SUCCEEDED            (500)

Each class has a stable ``code``, the ``http_status`` an API answers with, and each error carries a
``hint``: the next step for whoever reads it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MantaError(Exception):
    """Root of the tree. ``str(error)`` is the message; ``error.hint`` says what to do next."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem object."""
        return {
            "type": f"urn:manta:error:{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.http_status,
            "code": self.code,
            "detail": self.message,
            "hint": self.hint,
            **({"errors": self.detail} if self.detail else {}),
        }


class InvalidInput(MantaError):
    code = "invalid_input"
    http_status = 400


class DefinitionInvalid(InvalidInput):
    code = "definition_invalid"
    http_status = 422


class SettingsInvalid(InvalidInput):
    code = "settings_invalid"


class SourceUnreadable(InvalidInput):
    code = "source_unreadable"
    http_status = 422


class SecretUnreadable(InvalidInput):
    code = "secret_unreadable"
    http_status = 422


class ContractBroken(InvalidInput):
    code = "contract_broken"
    http_status = 422


class SchemaChanged(ContractBroken):
    code = "schema_changed"


class RequestInvalid(InvalidInput):
    code = "request_invalid"


class TooLarge(RequestInvalid):
    code = "too_large"
    http_status = 413


class WrongMediaType(RequestInvalid):
    code = "wrong_media_type"
    http_status = 415


class WrongMethod(RequestInvalid):
    code = "wrong_method"
    http_status = 405


class TrainingInvalid(InvalidInput):
    code = "training_invalid"
    http_status = 422


class ModelRefused(InvalidInput):
    code = "model_refused"
    http_status = 422


class KeyReused(InvalidInput):
    code = "key_reused"
    http_status = 422


class Unauthenticated(MantaError):
    code = "unauthenticated"
    http_status = 401


class Forbidden(MantaError):
    code = "forbidden"
    http_status = 403


class NotFound(MantaError):
    code = "not_found"
    http_status = 404


class Conflict(MantaError):
    code = "conflict"
    http_status = 409


class InProgress(Conflict):
    code = "in_progress"


class Unacknowledged(Conflict):
    code = "unacknowledged"


class TooMany(MantaError):
    code = "too_many"
    http_status = 429


class GateFailed(MantaError):
    code = "gate_failed"
    http_status = 409


class SkewFound(MantaError):
    code = "skew_found"
    http_status = 409


class ExtraMissing(MantaError):
    code = "extra_missing"
    http_status = 501


class Unavailable(MantaError):
    code = "unavailable"
    http_status = 503


class PlatformDown(Unavailable):
    code = "platform_down"


class PortInUse(Unavailable):
    code = "port_in_use"


class FeaturesUnavailable(Unavailable):
    code = "features_unavailable"


class FeaturesStale(Unavailable):
    code = "features_stale"


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class RunFailed(MantaError):
    code = "run_failed"


def _leaves(cls: type[MantaError]) -> list[type[MantaError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


def from_problem(problem: dict[str, Any]) -> MantaError:
    """The error a problem object stands for, so that a client raises what the server raised."""
    by_code = {cls.code: cls for cls in _leaves(MantaError)}
    cls = by_code.get(str(problem.get("code")), MantaError)
    detail = problem.get("errors")
    return cls(
        str(problem.get("detail") or problem.get("title") or "the server answered with an error"),
        hint=str(problem.get("hint") or ""),
        **(detail if isinstance(detail, dict) else {}),
    )
