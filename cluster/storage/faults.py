"""What boto3's errors mean: whether another try may help, and which error is raised in the end."""

import errno
import re
from dataclasses import dataclass

import urllib3
from botocore import exceptions
from botocore.parsers import ResponseParserError

from vtx_scale.data_pipeline.storage import Changed, NoBucket, NoKeys

AGAIN = (409, 429)  # beside 5xx: two conditional writes met; too many requests
CODE = re.compile(r"[A-Za-z0-9.]{1,64}")
# an answer that broke off, or none
BROKEN = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    OSError,
)
NO_KEYS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
)


@dataclass(frozen=True)
class Fault:
    """Why a request failed.

    status: of the answer, 0 where there was none. code: a word for it. again: whether another try
    may help.
    """

    status: int
    code: str
    again: bool


class Misconfigured(OSError):
    """The environment says of S3 what cannot be; the text says what to change."""


def fault_of(e: Exception) -> Fault | None:
    """What an error of boto3 means; None where it is no request's."""
    if isinstance(e, Misconfigured):
        return None
    if isinstance(e, exceptions.ClientError):
        status = int(e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = str(e.response.get("Error", {}).get("Code", ""))
        code = said if CODE.fullmatch(said) else ""
        again = status >= 500 or status in AGAIN or code in ("RequestTimeout", "SlowDown")
        # an error in the body of an answer that began well
        return Fault(status if status >= 300 else 500, code, again or status < 300)
    name = type(e).__name__
    if isinstance(e, NO_KEYS):
        return Fault(403, name, False)
    if isinstance(e, BROKEN):
        return Fault(0, name, not isinstance(e, exceptions.SSLError))
    if isinstance(e, exceptions.BotoCoreError):
        return Fault(400, name, False)
    return None


def error_of(fault: Fault, tries: int, url: str) -> OSError:
    """The error for a fault; its text has no words of the server's but the code."""
    if fault.status == 404:
        if fault.code == "NoSuchBucket":
            url = "/".join(url.split("/")[:3])
            return NoBucket(errno.ENOENT, "no such bucket", url)
        return FileNotFoundError(errno.ENOENT, "no such object", url)
    if fault.status == 412:
        return Changed(errno.ESTALE, "the object is another by now", url)
    if fault.code.endswith(("CredentialsError", "RetrievalError")):
        return NoKeys(errno.EACCES, "no credentials for AWS were found", url)
    said = " ".join(dict.fromkeys((str(fault.status), fault.code))).strip()
    if fault.status in (401, 403) or fault.code == "ExpiredToken":
        return PermissionError(errno.EACCES, f"the server refuses it ({said})", url)
    times = f", {tries} times" if tries > 1 else ""
    if not fault.status:
        return OSError(errno.EIO, f"the server did not answer ({fault.code}{times})", url)
    return OSError(errno.EIO, f"the server answered {said}{times}", url)
