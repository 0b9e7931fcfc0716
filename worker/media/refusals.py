"""What object stores say when they do not do as asked, in plain words and without secrets.

`obstore` puts the whole exchange into its messages, URLs and all. Of these only the store's own
error code and the HTTP status are taken.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from worker.ground.errors import StoreUnavailableError

# Of S3 (and what speaks like it), Google Cloud Storage and Azure.
BY_CODE = {
    "SlowDown": "it asks to slow down",
    "ServerBusy": "it asks to slow down",
    "RequestLimitExceeded": "it asks to slow down",
    "TooManyRequests": "it asks to slow down",
    "ExpiredToken": "the credentials have expired",
    "ExpiredTokenException": "the credentials have expired",
    "TokenRefreshRequired": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
    "InvalidAccessKeyId": "the access key is not known",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AuthenticationFailed": "the credentials are refused",
    "AccessDenied": "the credentials do not allow it",
    "AuthorizationFailure": "the credentials do not allow it",
    "AuthorizationPermissionMismatch": "the credentials do not allow it",
    "AccountIsDisabled": "the account is disabled",
    "AccountProblem": "the account is locked",
    "NoSuchBucket": "there is no such bucket",
    "ContainerNotFound": "there is no such container",
    "AuthorizationHeaderMalformed": "the region is wrong",
    "PermanentRedirect": "the region is wrong",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "QuotaExceeded": "it is full",
    "XMinioStorageFull": "it is full",
    "InsufficientStorage": "it is full",
}
BY_STATUS = {
    401: "the credentials are refused",
    403: "the credentials do not allow it",
    404: "there is no such bucket",
    429: "it asks to slow down",
    507: "it is full",
}
# By what the text of an error without an answer has in it; the first that fits.
BY_TEXT = (
    ("BadScheme", "its endpoint is plain http, which has to be allowed (AWS_ALLOW_HTTP=true)"),
    ("169.254.169.254", "no credentials were found in the environment"),
    ("metadata.google.internal", "no credentials were found in the environment"),
    ("TimedOut", "it did not answer in time"),
    ("Timeout", "it did not answer in time"),
    ("dns error", "the name of its host is not known"),
    ("ConnectionReset", "the connection to it broke"),
    ("BrokenPipe", "the connection to it broke"),
    ("Connect", "no connection to it"),
    ("error sending request", "the connection to it broke"),
    ("error decoding response body", "the connection to it broke"),
)
CONTAINER_CODES = {"NoSuchBucket", "ContainerNotFound"}
CLIENT_ERRORS = range(400, 500)

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_SECRETS = ("AWS_", "GOOGLE_", "AZURE_")


@contextmanager
def naming_refusal(trouble: str) -> Iterator[None]:
    """Turn whatever `obstore` raises into a StoreUnavailableError: the trouble and its reason.

    AlreadyExistsError and PreconditionError pass: they are answers.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        # Not chained: the message may hold signed URLs.
        raise StoreUnavailableError(f"{trouble}: {describe_refusal(error)}") from None


def describe_refusal(error: Exception) -> str:
    """The store's own words where they are known, with its code or status in brackets."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__  # of the spool's file on local disk
    text = str(error)
    code, status = _find(_CODE, text), _find(_STATUS, text)
    if code is not None and code in BY_CODE:
        return f"{BY_CODE[code]} ({code})"
    if status is not None:
        return _describe_status(int(status), code)
    return next((reason for mark, reason in BY_TEXT if mark in text), type(error).__name__)


def is_about_container(error: Exception) -> bool:
    """Whether a 404 means the bucket, not the object in it."""
    return _find(_CODE, str(error)) in CONTAINER_CODES


def describe_configuration(error: Exception, variables: str) -> str:
    """Why a store could not be built, without the values that its environment holds."""
    text = str(error).partition("\n")[0]
    for name, value in os.environ.items():
        if name.startswith(_SECRETS) and len(value) > 1:
            text = text.replace(value, f"${name}")
    return f"the environment variables {variables}... do not make a store: {text}"


def _describe_status(status: int, code: str | None) -> str:
    told = f"HTTP {status}" if code is None else f"HTTP {status}, {code}"
    if status in BY_STATUS:
        return f"{BY_STATUS[status]} ({told})"
    if status in CLIENT_ERRORS:
        return f"it refuses the request ({told})"
    return f"it failed ({told})"


def _find(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else found[1]
