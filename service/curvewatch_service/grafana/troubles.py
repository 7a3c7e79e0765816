"""What goes wrong with a Grafana, as sentences: the thing, what was said, and what to do."""

from __future__ import annotations

import re
import ssl

import requests

_PERMISSIONS = {
    "folder": "Folders: Creator, or the role Editor",
    "dashboard": "Dashboards: Writer, or the role Editor",
    "data source": "Data sources: Writer, or the role Admin",
}


def said_by(response: requests.Response) -> str:
    """Return Grafana's own words; a gateway's page is none of them."""
    try:
        answer = response.json()
    except requests.exceptions.JSONDecodeError:
        return response.reason or "no message"
    message = answer.get("message") if isinstance(answer, dict) else None
    return str(message or response.reason or "no message")[:300]


def innermost(error: BaseException) -> BaseException:
    """Return the reason that the libraries have wrapped."""
    while True:
        reason = getattr(error, "reason", None)
        parts = [reason, *error.args]
        deeper = next((part for part in parts if isinstance(part, BaseException)), None)
        if deeper is None:
            return error
        error = deeper


def cause(error: BaseException) -> str:
    """Return the innermost reason in words."""
    # urllib3 begins with the Python object that failed.
    return re.sub(r"^.*?\bobject at 0x\w+>: |^\w+Connection\(.*?\): ", "", str(innermost(error)))


def insecure(url: str, reason: BaseException) -> str:
    """Say why no connection over TLS came about."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {url} is not trusted ({reason.verify_message}); give the certificates that sign it "
            "with --ca-file, and the host's name as the certificate has it"
        )
    return f"{url} speaks no TLS that is understood here ({reason}); is its address one with http://?"


def refusal(what: str, status: int, message: str, url: str) -> str:
    """Say what Grafana refused, with its own words, and what to do about it."""
    said = f"Grafana at {url} answered {status} ({message.rstrip('.')})"
    about = f"{what}: " if what else ""
    if status == requests.codes.unauthorized:
        return (
            f"{said}: it does not know the token, or the token has expired; make one in Administration, Users and "
            "access, Service accounts"
        )
    if status == requests.codes.forbidden:
        kind = next((kind for kind in _PERMISSIONS if what.startswith(kind)), "dashboard")
        return f"{about}{said}: the token may not do that; its service account needs {_PERMISSIONS[kind]}"
    if status == requests.codes.not_found:
        if not what:
            return f"what answers at {url} is no Grafana: {status} for /api/health; check --url and its path"
        return f"{about}{said}: it, or its folder, went away meanwhile; publish again"
    if status in (requests.codes.conflict, requests.codes.precondition_failed):
        return f"{about}{said}: {_conflict(what, message)}"
    if status >= requests.codes.server_error or status == requests.codes.too_many_requests:
        return (
            f"{about}{said}: its own trouble; look into its log and publish again, it changes nothing twice"
        )
    return (
        f"{about}{said}; is this Grafana one of 11 to 13, and are the dashboards unchanged since the build?"
    )


def _conflict(what: str, message: str) -> str:
    if "changed by someone else" in message or "updated by someone else" in message:
        return "somebody saved it at this moment; publish again, and see with --dry-run what differs"
    if what.startswith("data source"):
        return "another data source has its name; rename that one in Grafana, or publish without --prometheus-url"
    if what.startswith("folder"):
        return "another folder has its title, or its uid where the token cannot see it; choose a title with --folder"
    return (
        "another dashboard is in its place; rename or remove that one in Grafana, or publish with --overwrite"
    )
