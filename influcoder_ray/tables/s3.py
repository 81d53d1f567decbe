"""How S3 is spoken to: time-outs, retries, and what is refused before any work."""

import re
from typing import Any
from urllib.parse import urlsplit

import fsspec

from influcoder_ray.errors import UserError
from influcoder_ray.tables.patience import answer_of, is_passing, patiently

_SCHEMES = ("s3://", "s3a://")
_CREDENTIALS = (
    # user:password@host of any scheme.
    re.compile(r"://[^/]*:[^/]*@"),
    # No bucket's name holds a colon or an at sign, and a secret key may hold a slash; ARNs are names too.
    re.compile(r"\bs3a?://(?!arn:)[^/]*[:@]"),
    re.compile(r"[?&](access_key|secret_key|session_token)="),
)
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_BAD_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)
_OTHER_REGION = frozenset(
    {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)


def is_s3(uri: str) -> bool:
    return uri.startswith(_SCHEMES)


def holds_credentials(uri: str) -> bool:
    """Whether an address names a user, a password or a key, which would end up in logs and settings."""
    return any(pattern.search(uri) for pattern in _CREDENTIALS)


def s3_options(*, attempts: int = 8) -> dict[str, Any]:
    """What every S3 filesystem of a run is opened with; fsspec's own configuration goes before it.

    botocore's "standard" mode repeats any request that S3 answers with 500 to 504 or SlowDown, or whose
    connection breaks or times out, after a random part of 1, 2, 4, ... 20 seconds; s3fs repeats a read
    whose body breaks. Listings are not kept: other processes write, and Ray Train has the same filesystem.

    Args:
        attempts: times that a request is sent, the first one included.
    """
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    ours = {
        "connect_timeout": 5,
        "read_timeout": 30,
        "retries": {"mode": "standard", "total_max_attempts": attempts},
    }
    return {"use_listings_cache": False, "config_kwargs": ours | configured}


def refuse_unreachable(setting: str, uri: str, busy_seconds: float) -> None:
    """Refuse an S3 address that cannot be listed: wrong keys, bucket, endpoint. Reads one name.

    A server that is busy is asked again; one that refuses or does not answer is not waited for.

    Args:
        busy_seconds: how long to ask a server that answers "not now".

    Raises:
        UserError: with the setting, and what would be right.
    """
    from botocore.exceptions import BotoCoreError

    options = s3_options(attempts=3)
    options["config_kwargs"] |= {"connect_timeout": 3, "read_timeout": 5}
    filesystem = fsspec.filesystem("s3", **options)
    # s3fs would go through all of botocore's attempts five times.
    filesystem.retries = 1
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    before_wildcards = re.split(r"[*?\[]", key)[0]

    def look() -> None:
        try:
            filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=before_wildcards, MaxKeys=1)
        except PermissionError as error:
            # A single file can be read without the right to list.
            if (answer_of(error) or ("",))[0] != "AccessDenied" or not filesystem.isfile(f"{bucket}/{key}"):
                raise

    try:
        patiently(look, seconds=busy_seconds, passes=lambda e: answer_of(e) is not None and is_passing(e))
    except (OSError, BotoCoreError, ValueError) as error:
        raise UserError(f"{setting}: {_fault(error, uri, bucket, _endpoint(filesystem))}") from error


def _endpoint(filesystem: Any) -> str:
    """The server that is asked, without a user name or password that its address may hold."""
    from botocore.exceptions import BotoCoreError

    try:
        address = str(filesystem.s3.meta.endpoint_url)
    except (BotoCoreError, ValueError):
        return "an address that cannot be used"
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _fault(error: Exception, uri: str, bucket: str, endpoint: str) -> str:
    """What is wrong with an address on S3, and what would be right.

    Codes alone are named: the text of an answer may quote the key.
    """
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    answer = answer_of(error)
    if answer is None:
        kind = type(error).__name__
        if isinstance(error, exceptions.NoCredentialsError):
            return (
                f"{uri} needs S3 credentials and there are none; set {_KEYS}, or AWS_PROFILE, or give "
                "the machine a role"
            )
        if isinstance(error, exceptions.ParamValidationError):
            return f"{uri}: {bucket!r} is no name of a bucket; give s3://bucket/path"
        broken = (exceptions.ConnectionError, exceptions.HTTPClientError, ResponseParserError)
        if isinstance(error, (*broken, OSError, ValueError)):
            return (
                f"{uri}: no S3 server answers at {endpoint} ({kind}); set AWS_ENDPOINT_URL to one that does"
            )
        return f"{uri}: the S3 credentials or settings cannot be used ({kind}); mend AWS_PROFILE or {_KEYS}"
    code, status = answer
    if code == "NoSuchBucket":
        return f"{uri}: there is no bucket {bucket!r} at {endpoint}; make it, or give another"
    if code in _BAD_KEYS:
        return (
            f"{uri}: {endpoint} refuses the credentials ({code}); set {_KEYS} to a pair that is valid there"
        )
    if code in _OTHER_REGION:
        return f"{uri}: bucket {bucket!r} lies in another region ({code}); set AWS_DEFAULT_REGION to its own"
    if status in (401, 403):
        return (
            f"{uri}: {endpoint} gives these credentials no access ({code}); allow them to list, read and "
            "write there, or use others"
        )
    return f"{uri}: {endpoint} answers {code or status}; set AWS_ENDPOINT_URL to an S3 server that is ready"
