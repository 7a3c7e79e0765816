"""Errors of the service.

ServiceError: carries the HTTP status it is answered with
├── BadRequestError (422): what was sent cannot be used
│   ├── CodeBundleError: the code folder cannot be taken
│   ├── CannotFitError: the cluster will never have what the job asks for
│   └── JobRefusedError: Ray does not take the job, now or later
├── NotAuthenticatedError (401)
├── ForbiddenError (403): not from where it may be asked
├── NotFoundError (404)
├── TooLargeError (413)
├── WrongMediaError (415): not in the form that is read there
├── IllegalTransitionError (409): a move that is not in the life of a run
├── RunEndedError (409): there is nothing left to stop
├── RunTakenError (409): the id of a run that is reported is another's, or the run has ended
├── ClusterUnavailableError (503): Ray does not answer
├── CurveFileError: a file holds no learning curve that can be read
├── GrafanaError: a Grafana is not there, or does not take what is published
│   └── GrafanaRefusedError: it answered with an error; carries the status
├── SettingsError: a setting cannot be used
└── DatabaseVersionError: the database was written by a newer Curvewatch
"""

from __future__ import annotations


class ServiceError(Exception):
    """Something that a caller is told. The message names the thing, the rule, the value and the remedy."""

    status = 500


class BadRequestError(ServiceError):
    """What was sent cannot be used."""

    status = 422


class CodeBundleError(BadRequestError):
    """The code folder cannot be taken."""


class CannotFitError(BadRequestError):
    """The cluster will never have what the job asks for."""


class JobRefusedError(BadRequestError):
    """Ray does not take the job, now or later."""


class NotAuthenticatedError(ServiceError):
    """No valid token came with the request."""

    status = 401


class ForbiddenError(ServiceError):
    """The request may not come from where it came."""

    status = 403


class NotFoundError(ServiceError):
    """There is no such thing."""

    status = 404


class TooLargeError(ServiceError):
    """More bytes or files than the service takes."""

    status = 413


class WrongMediaError(ServiceError):
    """The body is not in the form that is read there."""

    status = 415


class IllegalTransitionError(ServiceError):
    """A run cannot make this move."""

    status = 409

    def __init__(self, source: str, target: str) -> None:
        super().__init__(f"a run in state {source} cannot become {target}")


class RunEndedError(ServiceError):
    """A run has ended already."""

    status = 409

    def __init__(self, run_id: str, state: str, reason: str) -> None:
        super().__init__(f"{run_id} has ended already, {state}: {reason}; there is nothing to stop")


class RunTakenError(ServiceError):
    """A run cannot be reported under this id."""

    status = 409

    def __init__(self, run_id: str, trouble: str) -> None:
        super().__init__(f"run {run_id!r} {trouble}; report this training under a new id")


class ClusterUnavailableError(ServiceError):
    """Ray does not answer."""

    status = 503


class CurveFileError(ServiceError):
    """A file holds no learning curve that can be read."""


class GrafanaError(ServiceError):
    """A Grafana is not there, or does not take what is published."""


class GrafanaRefusedError(GrafanaError):
    """A Grafana answered with an error."""

    def __init__(self, detail: str, *, answered: int) -> None:
        self.answered = answered
        """HTTP status of Grafana's answer."""
        super().__init__(detail)


class SettingsError(ServiceError):
    """A setting cannot be used."""


class DatabaseVersionError(ServiceError):
    """The database was written by a newer Curvewatch."""
