"""What an object store refuses, in our words: what happened, what to do about it, and no secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BackupNotFound, StorageFull, Unavailable

_MOST_CHARS = 600
_MARKUP = re.compile(r"<[?A-Za-z]")
_TOLD = re.compile(r"<(?:Code|Message)>([^<]*)</")
_USER = re.compile(r"(\w://)[^/\s]*@")
_QUERY = re.compile(r"(\w://[^\s?]*)\?\S*")
_FULL = (" 507 ", "QuotaExceeded", "StorageFull")
"""What stores with a quota or a disk of their own say."""
_UNANSWERED = re.compile("HTTP error| 50[024] ")
"""No answer, or half of one, as obstore says it; or that of a gateway that had none."""
_DENIED = ("PermissionDeniedError", "UnauthenticatedError")
"""Of obstore; a list that is refused has no class of its own."""


@contextmanager
def in_our_words(target: str, *, writes: str = "") -> Iterator[None]:
    """Errors of obstore as StorageFull, BackupNotFound, for an object to be read that is not there, else Unavailable.
    They have no cause: that of obstore tells all that the store has answered. `writes` names an object to be written: it
    may come yet where the details of the error have it as `unanswered`."""
    try:
        yield
    except Exception as error:
        # Those of the system beside its own: obstore raises FileNotFoundError for what is not there.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("obstore"):
            raise
        text = _text(error)
        missing = isinstance(error, FileNotFoundError)
        if any(word in text for word in _FULL):
            raise full(target, text) from None
        if missing and not writes and not _no_bucket(text):
            raise BackupNotFound(f"there is no such backup in {target}: {text}") from None
        advice = "make the bucket, or mend its name" if missing else _advice(error, text)
        late = {"unanswered": writes} if writes and _UNANSWERED.search(text) else {}
        raise unusable(target, text, advice, **late) from None


def full(target: str, text: str) -> StorageFull:
    return StorageFull(f"{target} is full: {text}; free space there and repeat the backup")


def unusable(target: str, text: str, advice: str, **details: str) -> Unavailable:
    return Unavailable(f"the backup target {target} cannot be used: {text}; {advice}", **details)


def _text(error: Exception) -> str:
    """One line. The answer of a store to a signature that is wrong repeats what was signed, a session's token in it, so of
    an answer only its code and message are told; and of an address neither its user nor its query."""
    told, _, _ = str(error).partition("\n\nDebug source")
    markup = _MARKUP.search(told)
    if markup is None:
        told = told.partition("\n")[0]
    else:
        answer = ": ".join(_TOLD.findall(told, markup.start()))
        told = told[: markup.start()] + answer
    told = _QUERY.sub(r"\1", _USER.sub(r"\1", " ".join(told.split())))
    return told if len(told) <= _MOST_CHARS else f"{told[:_MOST_CHARS]}…"


def _no_bucket(text: str) -> bool:
    """Whether what is not there is the bucket: as S3 and Google Cloud Storage say it, and Azure."""
    return "NoSuchBucket" in text or "ContainerNotFound" in text


def _advice(error: Exception, text: str) -> str:
    if _no_bucket(text):
        return "make the bucket, or mend its name"
    if type(error).__name__ in _DENIED or " 403 " in text or " 401 " in text:
        return "look at the keys in the environment, and whether they may list, read, write and delete objects there"
    if "builder error" in text and "http://" in text:
        return "an endpoint without TLS is used only where it is allowed, for S3 by AWS_ALLOW_HTTP=true"
    if type(error).__name__ == "InvalidPathError":
        return "remove that object, or give backups a prefix where nothing else lies"
    return "see that the store can be reached and answers, then repeat the call"
