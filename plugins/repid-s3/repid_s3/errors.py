"""What goes wrong with S3, in words that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from repid_core.errors import BucketBrokerError, BucketConnectionError
from repid_s3.settings import S3BucketBrokerSettings

_RIGHTS: Final = {
    "PutObject": 's3:PutObject and, with retention="tags", s3:PutObjectTagging for {place.prefix}*',
    "GetObject": (
        "s3:GetObject for {place.prefix}*, and s3:ListBucket on the bucket, without which a key that is missing reads as denied"
    ),
    "DeleteObject": "s3:DeleteObject for {place.prefix}*",
    "DeleteObjects": "s3:DeleteObject for {place.prefix}*",
    "HeadBucket": "s3:ListBucket on the bucket",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration on the bucket",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration on the bucket",
    "DeleteBucketLifecycle": "s3:PutLifecycleConfiguration on the bucket",
}


class _Saying(NamedTuple):
    """What an error means.

    Attributes:
        text: What is said, where the names in braces are filled in.
        later: Whether the same call may go well later.
    """

    text: str
    later: bool = False


_CREDENTIALS: Final = "correct or renew the credentials that boto3 finds"
_THROTTLED: Final = _Saying(
    "S3 is asked too much ({code}), even after {most} attempts: lower concurrency, or ask later", later=True
)
_BROKEN: Final = _Saying("S3 has failed ({said}), even after {most} attempts: see the server's state, or ask later", later=True)
_DENIED: Final = _Saying("access is denied ({code}): grant {right}")
_NO_BUCKET: Final = _Saying("there is no such bucket: make it, or correct the URL")
_ELSEWHERE: Final = _Saying("the bucket is in another region ({code}): set region_name, now {region}")
_NO_TAGS: Final = _Saying('this server takes no tags ({said}): set retention="prefix" with prefix_days, or retention="none"')
_REFUSED: Final = _Saying("S3 has refused it: {said}")

# By what S3 calls the error.
_CODES: Final[Mapping[str, _Saying]] = {
    **dict.fromkeys(("NoSuchBucket", "404", "NotFound"), _NO_BUCKET),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "Forbidden", "403"), _DENIED),
    **dict.fromkeys(
        ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "503", "429"), _THROTTLED
    ),
    **dict.fromkeys(("InternalError", "ServiceUnavailable", "RequestTimeout", "500", "502", "504"), _BROKEN),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307"), _ELSEWHERE),
    "IllegalLocationConstraintException": _ELSEWHERE,
    "InvalidAccessKeyId": _Saying(f"S3 does not know the access key: {_CREDENTIALS}"),
    "SignatureDoesNotMatch": _Saying(f"the secret key is not that of the access key: {_CREDENTIALS}"),
    "ExpiredToken": _Saying(f"the session's token has expired: {_CREDENTIALS}"),
    "InvalidToken": _Saying(f"the session's token is not valid: {_CREDENTIALS}"),
    "TokenRefreshRequired": _Saying(f"the session's token has to be renewed: {_CREDENTIALS}"),
    "RequestTimeTooSkewed": _Saying("the clock of this machine is off; the server's says {date}: set it, for example by NTP"),
    "EntityTooLarge": _Saying("the server takes less than this ({said}): lower max_payload"),
}

# By the name of boto3's error, when there was no answer.
_NAMES: Final[Mapping[str, _Saying]] = {
    **dict.fromkeys(
        ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
        _Saying("boto3 finds no credentials: set them in the environment or in its files, or give a session"),
    ),
    "NoRegionError": _Saying("boto3 finds no region: set region_name"),
    # boto3 follows a redirect that names no region to where it came from.
    "RecursionError": _Saying("the server sends elsewhere, and does not say where: set region_name to the bucket's"),
    "EndpointConnectionError": _Saying(
        "it cannot be reached, for nothing listens there, or the name is not known: correct endpoint_url", later=True
    ),
    **dict.fromkeys(
        ("ReadTimeoutError", "ConnectTimeoutError"),
        _Saying("it does not answer in time: see that it runs, and that no firewall is between", later=True),
    ),
    **dict.fromkeys(
        ("ConnectionClosedError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError", "ProxyConnectionError"),
        _Saying("the connection was lost: see that it runs", later=True),
    ),
    "SSLError": _Saying(
        "TLS failed: see that endpoint_url has the right scheme, and that the certificate is trusted", later=True
    ),
}


def explained(error: BaseException, operation: str, settings: S3BucketBrokerSettings) -> BucketBrokerError:
    """The error to raise for one of boto3's, which belongs behind it as its cause. No credentials are in it."""
    place, response = settings.place, _response(error)
    code, message = code_of(error), str(response.get("Error", {}).get("Message") or "")
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    saying = _refused(code, message, response, operation, settings) if code else _unanswered(error)
    facts = {
        "code": code,
        "said": f"{code} {message}".strip() or f"{type(error).__name__}: {error}",
        "most": settings.max_attempts,
        "region": place.region_name or "what boto3 finds",
        "right": _RIGHTS.get(operation, "it").format(place=place),
        "date": headers.get("date", "another time"),
    }
    where = f"bucket {place.bucket!r} of S3 at {place.endpoint_url or 'AWS'}"
    kind = BucketConnectionError if saying.later else BucketBrokerError
    return kind(f"{operation} in {where}: {saying.text.format_map(facts)}")


def code_of(error: BaseException) -> str:
    """What S3 calls the error; empty if it has not answered."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: BaseException) -> Mapping[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}  # a ReadTimeoutError has one too, which is None


def _refused(code: str, message: str, response: Mapping[str, Any], operation: str, settings: S3BucketBrokerSettings) -> _Saying:
    about_tags = code in {"NotImplemented", "501"} or (code == "InvalidArgument" and "tagging" in message.lower())
    if about_tags and operation == "PutObject" and settings.retention == "tags":
        return _NO_TAGS
    if code.startswith("KMS."):
        return _Saying("the key for encryption cannot be used ({said}): correct sse_kms_key_id, or enable it")
    broken = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    return _CODES.get(code) or (_BROKEN if broken else _REFUSED)


def _unanswered(error: BaseException) -> _Saying:
    lost = _Saying("the connection was lost ({said}): see that it runs", later=True)
    return _NAMES.get(type(error).__name__) or (lost if isinstance(error, OSError) else _Saying("{said}"))
