"""The first stage, Preprocessor: encoded photo in, network input out.

Decoding and scaling are in `vision/image.py`.
"""

from __future__ import annotations

import asyncio
import time

from serve_app import deadline, metrics, tracing
from serve_app.errors import ImageTooComplex
from serve_app.graph.payloads import Prepared
from serve_app.graph.stage import Stage
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision import image, tiles
from serve_app.vision.tasks.by_name import TASKS

WAITS = 10


class Preprocessor(Stage):
    """Turns encoded photos into network inputs. Refuses bad images before they can share a batch with good ones."""

    def __init__(self, settings: AppSettings, size: int, task: str) -> None:
        self._settings, self._size, self._task = settings, size, TASKS[task]
        self._threads = asyncio.Semaphore(settings.decode_threads)
        self._seconds = metrics.stage_seconds()

    async def __call__(self, data: bytes, options: PredictOptions, most_tiles: int, expires_at: float) -> Prepared:
        """Decodes one photo and scales it into a network input, and each of its tiles, if they are asked for.

        `expires_at` is in seconds since 1970. Raises UnsupportedFormat, ImageTooLarge, ImageTooComplex, CorruptImage,
        InvalidParameter or Timeout.
        """
        await self._threads.acquire()
        job = asyncio.get_running_loop().run_in_executor(None, self.prepare, data, options, most_tiles, expires_at)
        job.add_done_callback(self._release)
        limit, waits = self._settings.decode_timeout_s, 0
        # In ten waits: the clock goes on while the process is frozen, and only one of them is lost then.
        while not (await asyncio.wait({job}, timeout=limit / WAITS))[0]:
            waits += 1
            if waits == WAITS:
                # A thread inside a decoder cannot be stopped: it holds its slot to the end; the client is answered now.
                raise ImageTooComplex(f"decoding takes more than the limit of {limit:g} s: send a smaller image")
        prepared = job.result()
        tracing.add_span("preprocess", prepared.preprocess_s)
        return prepared

    def _release(self, job: asyncio.Future[Prepared]) -> None:
        self._threads.release()
        job.cancelled() or job.exception()  # asyncio logs an exception that is never retrieved

    def prepare(self, data: bytes, options: PredictOptions, most_tiles: int, expires_at: float) -> Prepared:
        """The same in this thread, without a limit on time. Raises the same errors."""
        deadline.check(expires_at)
        started, tile = time.perf_counter(), None
        limits = self._settings.max_image_pixels, self._settings.max_image_frames
        if options.tile and "tile" in self._task.options:  # the ingress refuses it for the other tasks
            tiling = tiles.Tiling(options.tile, options.overlap, most_tiles)
            inputs, letterboxes, tile = tiles.prepare(data, self._size, *limits, tiling)
        else:
            input_hwc, letterbox = image.prepare(data, self._size, *limits, crops=self._task.crops)
            inputs, letterboxes = [input_hwc], [letterbox]
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed, {"stage": "preprocess"})
        photo = data if options.format == "image" else None
        return Prepared(inputs, letterboxes, tile, options, photo, elapsed, expires_at)
