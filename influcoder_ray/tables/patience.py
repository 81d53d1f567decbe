"""Asking an object store again while it is busy or its connections break, never where it refuses."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from influcoder_ray.tables import hub

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 20.0
# Answers of S3 that say "not now" or "that did not arrive whole" under a status below 500. NoSuchUpload:
# of a multipart upload whose end was repeated because the answer to it was lost.
_PASSING_CODES = frozenset(
    {
        "SlowDown",
        "RequestTimeout",
        "OperationAborted",
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "NoSuchUpload",
    }
)
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class Unfinished(OSError):
    """An object store said yes and did not do all of it."""


def patiently(
    action: Callable[[], T],
    *,
    seconds: float = PATIENCE_SECONDS,
    passes: Callable[[BaseException], bool] | None = None,
) -> T:
    """Do a thing that may be done twice, again after each failure that passes.

    The waits are drawn from [0, b) where b doubles from 0.5 to 20 seconds: "full jitter" of M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog 2015. Workers that one fault stopped together
    do not come back together.

    Args:
        seconds: from the first attempt on, after which a failure is final.
        passes: whether a failure may be gone at the next attempt; `is_passing` if None.

    Raises:
        Exception: what the action raised last, or first where it does not pass.
    """
    started = time.monotonic()
    bound = _FIRST_WAIT_SECONDS
    while True:
        try:
            return action()
        except Exception as error:
            wait = random.uniform(0, bound)
            if not (passes or is_passing)(error) or time.monotonic() + wait - started > seconds:
                raise
        time.sleep(wait)
        bound = min(2 * bound, _LONGEST_WAIT_SECONDS)


def is_passing(error: BaseException) -> bool:
    """Whether a failure may be gone at the next attempt: a busy store, a time-out, a broken connection."""
    of_hub = hub.fault_passes(error, _PASSING_STATUSES)
    if of_hub is not None:
        return of_hub
    answer = answer_of(error)
    if answer is not None:
        code, status = answer
        return code in _PASSING_CODES or status in _PASSING_STATUSES
    if isinstance(error, Unfinished | ConnectionError | TimeoutError):
        return True
    # Imported where something has failed: most runs never need to know these types.
    from botocore import exceptions
    from s3fs.core import S3_RETRYABLE_ERRORS

    broken = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        # The service that hands a machine its role's credentials is busy when many workers start at once.
        exceptions.CredentialRetrievalError,
    )
    return isinstance(error, (*S3_RETRYABLE_ERRORS, *broken))


def answer_of(error: BaseException) -> tuple[str, int] | None:
    """The S3 error code and HTTP status of the answer that an error stands for, if there was one."""
    from botocore.exceptions import ClientError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ClientError):
            found = cause.response
            status = found.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(found.get("Error", {}).get("Code", "")), int(status)
        cause = cause.__cause__
    return None
