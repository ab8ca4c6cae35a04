"""Good and broken versions of weights, published to an S3 for the drills."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from loadtests import s3_server
from serve_app.vision import sample_photos
from serve_app.vision.engines.checkpoint import read_checkpoint
from serve_app.vision.engines.pytorch import TorchEngine
from serve_app.weights import golden_set
from serve_app.weights.address import Address
from serve_app.weights.identity import BUNDLED, Manifest, Pinned, pin_file, sha256_of
from serve_app.weights.store import Store

KEY = f"s3://{s3_server.BUCKET}/road5.pt"


class Versions:
    """Publishes versions of a file, with a golden set of the two sample photos."""

    def __init__(self, bucket: s3_server.Bucket, folder: Path, file: Path = BUNDLED) -> None:
        self._bucket, self._folder, self._store = bucket, folder, Store(bucket.endpoint)
        self._count, self._file = itertools.count(), file
        found, model = pin_file(str(file)), TorchEngine(read_checkpoint(file))
        facts = {"class_names": model.class_names, "image_size": found.image_size, "task": found.task}
        made = golden_set.make(model, sample_photos.files(), found.image_size)
        self._manifest = Manifest.model_validate(
            facts | {"sha256": found.sha256, "bytes": file.stat().st_size, "golden": made}
        )

    def good(self) -> Pinned:
        """The weights, each number changed by at most 0.1 %: other bytes, the same objects."""
        return self._publish(self._changed(lambda p: p.mul_(1 + 0.001 * (2 * torch.rand_like(p) - 1))))

    def named(self, names: tuple[str, ...], file: str) -> Pinned:
        """The weights with other class names, as `file` in the same bucket, without a golden set."""
        path = self._changed(lambda _: None, names)
        return self._publish(path, f"s3://{s3_server.BUCKET}/{file}", class_names=names, golden=None)

    def broken(self, how: str) -> str:
        """Publishes a version that must be refused, and returns its address. `how` is a key of `swaps.REASONS`."""
        if how == "wrong hash":
            at = Address.parse(self.good().uri)
            return at.pinned(at.version or "", "0" * 64)
        if how == "vanished":
            at = Address.parse(self.good().uri)
            self._bucket.client.delete_object(Bucket=at.bucket, Key=at.key, VersionId=at.version)
            return at.pinned(at.version or "", at.sha256 or "")
        if how == "truncated":
            return self._truncated()
        if how == "wrong classes":
            return self._publish(self._changed(lambda _: None), class_names=("cat", "dog", "cow", "hen", "pig")).uri
        if how == "NaN":
            return self._publish(self._changed(lambda p: p.fill_(float("nan")))).uri
        assert how == "golden"
        return self._publish(self._changed(lambda p: p.mul_(1 + 0.5 * torch.randn_like(p)))).uri

    def _truncated(self) -> str:
        """What an interrupted copy leaves: the metadata of the whole file, and its bytes without the last 1,000."""
        at = Address.parse(self.good().uri)
        whole = self._bucket.client.get_object(Bucket=at.bucket, Key=at.key)
        cut = whole["Body"].read()[:-1000]
        put = self._bucket.client.put_object(Bucket=at.bucket, Key=at.key, Body=cut, Metadata=whole["Metadata"])
        return at.pinned(put["VersionId"], at.sha256 or "")

    def _changed(self, change: Callable[[torch.Tensor], object], names: tuple[str, ...] = ()) -> Path:
        path = self._folder / f"{next(self._count)}.pt"
        network = copy.deepcopy(read_checkpoint(self._file))
        network.names = dict(enumerate(names)) or network.names
        with torch.no_grad():
            for parameter in network.parameters():
                change(parameter)
        content = io.BytesIO()
        torch.save({"model": network.half()}, content)
        path.write_bytes(content.getvalue())
        return path

    def _publish(self, path: Path, uri: str = KEY, **stated: object) -> Pinned:
        update = {"sha256": sha256_of(path), "bytes": path.stat().st_size} | stated
        manifest = Manifest.model_validate(self._manifest.model_copy(update=update))
        return self._store.publish(path, manifest, uri)
