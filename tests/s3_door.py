"""What an S3 endpoint of tests says over HTTP: one class, which holds nothing; `s3_server` has the bucket.

GetObject with ranges and conditions, HeadObject, PutObject with conditions, DeleteObject, DeleteObjects, ListObjectsV2 in
pages, and uploads in parts. Signatures (version 4) and digests are checked, the parts of an upload have 5 MiB but for the
last, and what it does not know is refused.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import hashlib
import hmac
import re
import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

KEY, SECRET, TOKEN, REGION = "AKIDTEST", "the/secret+of-tests", "token-of-tests", "eu-test-1"
LEAST_PART_BYTES = 5 << 20
_KNOWN = {
    "prefix", "delimiter", "list-type", "continuation-token", "start-after", "max-keys",
    "uploads", "uploadId", "partNumber", "delete",
}  # fmt: skip


Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


class Refused(Exception):
    def __init__(self, status: int, code: str, more: str = "") -> None:
        self.status, self.code, self.more = status, code, more


class Cut(Exception):
    """The connection is to end without a word more."""


def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class Door(BaseHTTPRequestHandler):
    """One connection."""

    s3: Any
    fault: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.s3.connected(self.connection)

    def log_message(self, *_: Any) -> None:
        """Tests look at what was called instead."""

    def handle(self) -> None:
        # Whoever asked has gone, or is to see the connection end.
        with suppress(OSError, Cut):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        bucket, _, key = unquote(path).lstrip("/").partition("/")
        asked = dict(parse_qsl(query, keep_blank_values=True))
        call = _call_of(self.command, bool(key), asked)
        self.fault = self.s3.of(call, key)
        try:
            self._fail_before()
            body = self._body()
            if bucket != self.s3.bucket:
                raise Refused(404, "NoSuchBucket")
            self._check_signature(path, query, body)
            if call == "?" or not set(asked) <= _KNOWN:
                raise Refused(501, "NotImplemented")
            if self.fault.how in ("flipped", "short") and body:
                half = len(body) // 2
                body = body[:half] + (
                    bytes([body[half] ^ 1]) + body[half + 1 :]
                    if self.fault.how == "flipped"
                    else b""
                )
            if self.fault.how == "late":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.fault.released.wait()
            with self.s3.lock:
                status, headers, answer = getattr(self, _method_of(call))(key, asked, body)
            if self.fault.how == "held":
                self.fault.released.wait()
            if self.fault.how == "gone":
                self.s3.plant("*", "cut")
            if self.fault.how in ("unheard", "gone", "late"):
                raise Cut
            self._answer(status, headers, answer)
        except Refused as refused:
            self._refuse(refused)

    do_HEAD = do_PUT = do_DELETE = do_POST = do_GET  # noqa: N815  names of http.server

    def _fail_before(self) -> None:
        how = self.fault.how
        if how == "slow":
            self.fault.released.wait()
        refusal = {
            "slow_down": Refused(503, "SlowDown"),
            "timeout": Refused(504, "GatewayTimeout"),
            "denied": Refused(403, "AccessDenied"),
            "no_bucket": Refused(404, "NoSuchBucket"),
            "no_key": Refused(404, "NoSuchKey"),
            "full": Refused(507, "XMinioStorageFull"),
            # As S3 has it: what was signed, which holds the token, and the name of the key.
            "mismatch": Refused(
                403,
                "SignatureDoesNotMatch",
                f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId><CanonicalRequest>GET\nx-amz-security-token:"
                f"{self.headers.get('x-amz-security-token')}\n</CanonicalRequest>",
            ),
        }.get(how)
        if refusal is not None:
            self._body()
            raise refusal

    def _body(self) -> bytes:
        if self.command in ("PUT", "POST") and "content-length" not in self.headers:
            raise Refused(411, "MissingContentLength")
        size = int(self.headers.get("content-length", 0))
        if self.fault.how == "cut" and self.command in ("PUT", "POST"):
            self.rfile.read(size // 2)
            raise Cut
        data = self.rfile.read(size)
        if len(data) < size:
            raise Cut
        return data

    def _check_signature(self, path: str, query: str, body: bytes) -> None:
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)",
            self.headers.get("authorization", ""),
        )
        if found is None or found[1] != KEY:
            raise Refused(403, "InvalidAccessKeyId", f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId>")
        if self.headers.get("x-amz-security-token") != TOKEN:
            raise Refused(400, "InvalidToken")
        digest = self.headers.get("x-amz-content-sha256", "")
        if digest != "UNSIGNED-PAYLOAD" and digest != hashlib.sha256(body).hexdigest():
            raise Refused(400, "XAmzContentSHA256Mismatch")
        pairs = sorted(parse_qsl(query, keep_blank_values=True))
        signed = "".join(
            f"{name}:{self.headers.get(name, '').strip()}\n" for name in found[4].split(";")
        )
        canonical = "\n".join(
            [self.command, path, "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in pairs),
             signed, found[4], digest]
        )  # fmt: skip
        scope = f"{found[2]}/{found[3]}/s3/aws4_request"
        text = "\n".join(
            ["AWS4-HMAC-SHA256", self.headers.get("x-amz-date", ""), scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )  # fmt: skip
        key = f"AWS4{SECRET}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        if hmac.digest(key, text.encode(), "sha256").hex() != found[5]:
            raise Refused(
                403,
                "SignatureDoesNotMatch",
                f"<CanonicalRequest>{escape(canonical)}</CanonicalRequest>",
            )

    def _refuse(self, refused: Refused) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{refused.code}</Code><Message>no {refused.code}</Message>{refused.more}</Error>'
        self._answer(refused.status, {"content-type": "application/xml"}, text.encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        headers = {"content-length": str(len(body)), "x-amz-request-id": "1", **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.fault.how == "cut"
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.wfile.flush()
            if cut:
                raise Cut

    # One method for each call; the lock is held.

    def _put_object(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        self._check_conditions(key)
        self.s3.objects[key] = body
        return 200, {"etag": etag_of(body)}, b""

    def _check_conditions(self, key: str) -> None:
        there = self.s3.objects.get(key)
        wanted, unwanted = self.headers.get("if-match"), self.headers.get("if-none-match")
        if wanted is not None and (there is None or wanted != etag_of(there)):
            raise Refused(412, "PreconditionFailed")
        if unwanted is not None and there is not None and unwanted in ("*", etag_of(there)):
            raise Refused(412 if self.command == "PUT" else 304, "PreconditionFailed")

    def _get_object(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        data = self.s3.objects.get(key)
        if data is None:
            raise Refused(404, "NoSuchKey")
        self._check_conditions(key)
        now = email.utils.formatdate(time.time(), usegmt=True)
        headers = {"etag": etag_of(data), "last-modified": now, "accept-ranges": "bytes"}
        wanted = self.headers.get("range")
        if wanted is None:
            return 200, {**headers, "content-length": str(len(data))}, data
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
        if found is None:
            raise Refused(416, "InvalidRange")
        first = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
        last = int(found[2]) if found[1] and found[2] else len(data) - 1
        if first >= len(data):
            raise Refused(416, "InvalidRange")
        some = data[first : last + 1]
        headers["content-range"] = f"bytes {first}-{first + len(some) - 1}/{len(data)}"
        return 206, {**headers, "content-length": str(len(some))}, some

    _head_object = _get_object

    def _delete_object(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        self.s3.objects.pop(key, None)
        return 204, {}, b""

    def _delete_objects(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
        given = (self.headers.get("content-md5"), self.headers.get("x-amz-checksum-sha256"))
        if given not in ((md5, None), (None, sha256), (md5, sha256)):
            raise Refused(400, "InvalidRequest")
        names = [
            node.text or ""
            for node in ElementTree.fromstring(body).iter()
            if node.tag.endswith("Key")
        ]
        if not 0 < len(names) <= 1_000:
            raise Refused(400, "MalformedXML")
        told = []
        for name in names:
            fault = self.s3.of("DeleteObjects.key", name)
            if fault.how:
                told.append(
                    f"<Error><Key>{escape(name)}</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
                )
            else:
                self.s3.objects.pop(name, None)
                told.append(f"<Deleted><Key>{escape(name)}</Key></Deleted>")
        return 200, {}, f"<DeleteResult>{''.join(told)}</DeleteResult>".encode()

    def _list_objects_v2(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        if asked.get("list-type") != "2":
            raise Refused(501, "NotImplemented")
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = asked.get("start-after", "")
        if "continuation-token" in asked:
            after = base64.b64decode(asked["continuation-token"]).decode()
        most = min(int(asked.get("max-keys", 1_000)), self.s3.page_keys)
        held = self.fault.seen if self.fault.how == "stale" else self.s3.objects
        items: dict[str, bool] = {}  # those that stand for a folder are True
        for name in sorted(held):
            if name.startswith(prefix):
                end = name.find(delimiter, len(prefix)) if delimiter else -1
                items[name if end < 0 else name[: end + len(delimiter)]] = end >= 0
        left = [name for name in items if name > after]
        page = left[:most]
        told = [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            if items[name]
            else _listed(name, held[name])
            for name in page
        ]
        more = len(left) > len(page)
        if more:
            told.append(
                f"<NextContinuationToken>{base64.b64encode(page[-1].encode()).decode()}</NextContinuationToken>"
            )
        text = (
            f"<ListBucketResult><Name>{self.s3.bucket}</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{''.join(told)}</ListBucketResult>"
        )
        return 200, {"content-type": "application/xml"}, text.encode()

    def _create_multipart_upload(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        name = self.s3.next_id()
        self.s3.uploads[name] = key, {}
        text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
        return 200, {}, text.encode()

    def _upload(self, key: str, asked: dict[str, str]) -> dict[int, bytes]:
        held, parts = self.s3.uploads.get(asked["uploadId"], ("", {}))
        if held != key:
            raise Refused(404, "NoSuchUpload")
        return parts

    def _upload_part(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        self._upload(key, asked)[int(asked["partNumber"])] = body
        return 200, {"etag": etag_of(body)}, b""

    def _complete_multipart_upload(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        parts = self._upload(key, asked)
        named = [
            node.text or ""
            for node in ElementTree.fromstring(body).iter()
            if node.tag.endswith(("PartNumber", "ETag"))
        ]
        tags = {node for node in named if not node.isdecimal()}
        numbers = [int(node) for node in named if node.isdecimal()]
        if not numbers or numbers != sorted(set(numbers)) or any(n not in parts for n in numbers):
            raise Refused(400, "InvalidPart")
        if {etag_of(parts[n]).strip('"') for n in numbers} != {tag.strip('"') for tag in tags}:
            raise Refused(400, "InvalidPart")
        if any(len(parts[n]) < LEAST_PART_BYTES for n in numbers[:-1]):
            raise Refused(400, "EntityTooSmall")
        self._check_conditions(key)
        data = b"".join(parts[n] for n in numbers)
        self.s3.objects[key] = data
        del self.s3.uploads[asked["uploadId"]]
        text = f"<CompleteMultipartUploadResult><ETag>{escape(etag_of(data))}</ETag></CompleteMultipartUploadResult>"
        return 200, {}, text.encode()

    def _abort_multipart_upload(self, key: str, asked: dict[str, str], body: bytes) -> Answer:
        self._upload(key, asked)
        del self.s3.uploads[asked["uploadId"]]
        return 204, {}, b""


def _call_of(verb: str, of_object: bool, asked: dict[str, str]) -> str:
    if verb == "POST":
        if "delete" in asked and not of_object:
            return "DeleteObjects"
        ways = {"uploads": "CreateMultipartUpload", "uploadId": "CompleteMultipartUpload"}
        return next((call for name, call in ways.items() if name in asked and of_object), "?")
    if not of_object:
        return "ListObjectsV2" if verb == "GET" else "?"
    if "uploadId" in asked:
        return {"PUT": "UploadPart", "DELETE": "AbortMultipartUpload"}.get(verb, "?")
    return f"{verb.title()}Object"


def _method_of(call: str) -> str:
    return re.sub("(?=[A-Z])", "_", call).lower()


def _listed(name: str, data: bytes) -> str:
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>{now}</LastModified><ETag>{escape(etag_of(data))}</ETag>"
        f"<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )
