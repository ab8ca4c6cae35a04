"""The S3 address of weights, as written in a setting.

Parses and formats text only. It never contacts S3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs

from serve_app.errors import MissingWeights

SCHEME = "s3://"
# Not `urlsplit`: a key is any text, also with `#`, `?`, `%` and line ends, which mean themselves.
FORM = re.compile(r"s3://(?P<bucket>[^/?#]+)/(?P<key>.*\.pt)(?:\?(?P<query>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Address:
    """`s3://bucket/key`, optionally `?versionId=…&sha256=…`."""

    bucket: str
    key: str
    version: str | None
    sha256: str | None

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Parses an address. Raises MissingWeights when `uri` does not have this form."""
        parts = FORM.fullmatch(uri)
        query = parse_qs(parts["query"] or "", keep_blank_values=True) if parts else {}
        if not parts or query.keys() - {"versionId", "sha256"} or any(len(v) > 1 or not v[0] for v in query.values()):
            raise MissingWeights(f"{uri} is not of the form s3://bucket/key.pt?versionId=…&sha256=…")
        return cls(parts["bucket"], parts["key"], *(query.get(k, [None])[0] for k in ("versionId", "sha256")))

    def manifest_key(self, sha256: str) -> str:
        """The S3 key of the manifest whose own sha256 is `sha256`."""
        return f"{self.key}.manifests/{sha256}.json"

    def pinned(self, version: str, sha256: str) -> str:
        """The address of one version, which always means the same bytes."""
        return f"{SCHEME}{self.bucket}/{self.key}?versionId={version}&sha256={sha256}"
