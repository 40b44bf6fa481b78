"""What every route works with: the model that answers now, a place in the queue, three threads.

A route takes `engine.model` once, before it waits for its body, and answers by it: the next request
may find another one. `upload` gives the body, `decode` its pixels, `embed` and `compute` what the
model says, `search` what an index has, `prepare` writes long answers. None of it runs on the event
loop, which stays free for /healthz and for reading other bodies.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar, final

import numpy as np
from fastapi import Depends, FastAPI, Request

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder
from mimodel.errors import ArtifactError, PatchIndexError
from mimodel.index import PatchIndex
from mimodel.likeness import Comparison
from service.batching import Batcher
from service.decode import Declared, Expected, Reflectance
from service.errors import BusyError, SlowAnswerError
from service.images import Images
from service.memory import give_back
from service.metrics import Metrics
from service.openapi import KEY_SCHEME
from service.patches import Patches
from service.queries import PixelQuery
from service.rates import Rates
from service.reloading import Watch
from service.requests import client_of, media_type_of, read_body, while_connected
from service.schemas import ArtifactName
from service.settings import Settings
from service.turns import Turns


class _HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T")
Sized = TypeVar("Sized", bound=_HasBytes)

_SWEEP_SECONDS = 10.0

log = logging.getLogger("crossmi.service")

_CHUNK = 64
"""Patches of a grid that are cut out at a time."""


@final
@dataclass(frozen=True, eq=False)
class Model:
    """A loaded artifact, the name that answers carry, and what uploads it takes."""

    artifact: Artifact
    name: ArtifactName
    expected: Expected
    embedders: dict[str, Callable[[Reflectance], Reflectance]]
    """By representation, from patches to vectors: what the batcher joins requests for."""
    images: Images
    """What maps were asked of; they go when the model does."""
    index: PatchIndex | None = None
    """What can be searched by its vectors."""

    @classmethod
    def of(cls, artifact: Artifact, settings: Settings, index: Path | None = None) -> "Model":
        """`ArtifactError` if it reads no square patches, or its backend is not installed.

        `index` is the folder of an index; `PatchIndexError` if it is damaged or of another model.
        """
        expected = Expected(
            bands=artifact.spec.bands,
            patch_size=artifact.spec.patch_size,
            max_patches=settings.max_patches,
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_decoded_bytes,
        )
        name = ArtifactName(id=artifact.id, digest=artifact.digest)
        embedders = {
            representation: embedder(artifact, representation, Backend(settings.backend))
            for representation in artifact.spec.representations
        }
        searched = PatchIndex.load(index) if index else None
        if searched:
            searched.check_made_with(artifact)
        return cls(artifact, name, expected, embedders, Images(settings), searched)

    @cached_property
    def comparison(self) -> Comparison:
        """The networks of maps, one copy for all images; `InputError` if the model has none."""
        return Comparison(self.artifact)

    def strangeness(self, patches: Patches, shared: Reflectance) -> Reflectance | None:
        """Out-of-distribution scores (N,) of patches with these shared vectors (N, dim), if any."""
        if self.artifact.spec.novelty is None:
            return None
        scores = np.zeros(len(patches), np.float32)
        for at in range(0, len(patches), _CHUNK):
            part = slice(at, at + _CHUNK)
            scores[part] = self.artifact.out_of_distribution(shared[part], patches[part])
        return scores

    def warm_up(self) -> None:
        """One patch through each encoder, so that the first request is as fast as others."""
        spec = self.artifact.spec
        shape = (1, len(spec.bands), spec.patch_size, spec.patch_size)
        for embed in self.embedders.values():
            embed(np.full(shape, np.nan, np.float32))


@final
@dataclass
class Upload:
    """A body that has arrived whole, and the media type that it claims."""

    body: bytes
    media_type: str
    body_bytes: int = 0
    pixel_bytes: int = 0
    """What it holds of the memory for bodies, and then of that for pixels."""


@final
class Engine:
    """The model, the queue and the threads of one service. Use it from one event loop."""

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        folder: Path | None = None,
        index: Path | None = None,
    ) -> None:
        """`folder` is where the artifact is read from again when it has changed, and `index` where
        its index is read from."""
        self.settings = settings
        # Before the index is loaded: what changes from now on is read again.
        watch = Watch(folder, index, artifact.digest, settings.watch_seconds) if folder else None
        self.model = Model.of(artifact, settings, index)
        self.metrics = Metrics()
        self.metrics.model(self.model.name.id, self.model.name.digest)
        self.ready = False
        self.draining = False
        guarded = bool(settings.keys or settings.max_rate)
        described = [Depends(KEY_SCHEME)] if settings.keys else []
        self.guards = [*described, Depends(self._admit)] if guarded else []
        """Dependencies of every route that is not open to all."""
        self.guard_statuses = (401,) * bool(settings.keys) + (429,) * bool(settings.max_rate)
        """What these may answer, for the OpenAPI document."""
        self._folder = folder
        self._index_folder = index
        self._watch = watch
        self.turns = Turns()
        """For whatever many requests come to at the same time."""
        self._rates = Rates(settings.max_rate)
        self._places = 0
        self._body_bytes = 0
        self._pixel_bytes = 0
        self._answer_bytes = 0
        self.metrics.watch(
            lambda: self._places,
            {
                "bodies": lambda: self._body_bytes,
                "pixels": lambda: self._pixel_bytes,
                "images": lambda: self.model.images.nbytes,
                "answers": lambda: self._answer_bytes,
            },
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._decoding = asyncio.Lock()
        self._freed = asyncio.Event()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._searching = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._batcher = Batcher(
            settings.max_batch, self.metrics.batches.observe, self.metrics.calls.inc
        )

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Warm the model up beside the first requests; let begun work end before the threads do."""
        self._loop = asyncio.get_running_loop()
        warming = asyncio.create_task(self._warm_up())
        endless = [
            asyncio.create_task(work) for work in (self._keep_model_new(), self._forget_images())
        ]
        try:
            yield
        finally:
            for task in endless:
                task.cancel()
            try:
                # Whatever became of them was said when it happened.
                await asyncio.gather(warming, *endless, return_exceptions=True)
            finally:
                self._close()

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """A place in the queue for a request without a body; its faults are those of `upload`."""
        with self._place():
            async with self._awaited(request):
                yield

    @asynccontextmanager
    async def upload(
        self, request: Request, media_type: str | None = None
    ) -> AsyncIterator[Upload]:
        """The body of a request, which has a place in the queue until the answer is there.

        Of `media_type`, or of the one that the request says.

        `BusyError` if there is none: a body that nobody can work on is not taken into memory.
        `SlowAnswerError` if the answer is not there in time, `GoneError` if nobody waits for it.
        """
        upload = Upload(b"", media_type or media_type_of(request))

        def hold(count: int) -> None:
            if self._body_bytes + count > self.settings.max_waiting_bytes:
                raise BusyError("the bodies that wait fill the memory for them; try again later")
            upload.body_bytes += count
            self._body_bytes += count

        with self._place():
            try:
                upload.body = await read_body(request, self.settings, hold)
                async with self._awaited(request):
                    yield upload
            finally:
                self._body_bytes -= upload.body_bytes
                self._pixel_bytes -= upload.pixel_bytes
                self._freed.set()

    @contextmanager
    def answering(self, count: int) -> Iterator[None]:
        """An answer of so many bytes that its client has not taken yet."""
        self._answer_bytes += count
        try:
            yield
        finally:
            self._answer_bytes -= count

    async def decode(
        self,
        read: Callable[[bytes, str, Declared, Expected], Sized],
        upload: Upload,
        query: PixelQuery,
        model: Model,
    ) -> Sized:
        """What `read` unpacks from a body, one body at a time, and as there is memory for it."""
        async with self._decoding:
            while self._pixel_bytes > self.settings.max_waiting_bytes:
                self._freed.clear()
                await self._freed.wait()
            declared = Declared.of(query)
            pixels = await self.prepare(
                lambda: read(upload.body, upload.media_type, declared, model.expected)
            )
            # What the body holds is in the pixels now.
            upload.body, freed, upload.body_bytes = b"", upload.body_bytes, 0
            self._body_bytes -= freed
            upload.pixel_bytes = pixels.nbytes
            self._pixel_bytes += pixels.nbytes
            return pixels

    async def embed(self, model: Model, patches: Patches, representation: str) -> Reflectance:
        """Vectors (N, dim) of patches, worked out together with what others ask."""
        rows = await self._batcher.rows(model.embedders[representation], patches)
        await self.turns.mine()  # all of its batch go on at once
        return rows

    async def compute(self, work: Callable[[], T]) -> T:
        """The result of `work` by the model, in the thread that has it."""
        return await self._batcher.call(work)

    async def search(self, work: Callable[[], T]) -> T:
        """The result of `work` by the index, in the thread that has it."""
        return await asyncio.get_running_loop().run_in_executor(self._searching, work)

    async def prepare(self, work: Callable[[], T]) -> T:
        """The result of `work` that needs neither."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    def drain(self) -> None:
        """Say that the end is near: /readyz and the answers' headers tell so from now on."""
        self.draining = True

    def want_reload(self) -> None:
        """Have the artifact read again, soon; may be called from a signal handler."""
        if self._loop is not None and self._watch is not None:
            self._loop.call_soon_threadsafe(self._watch.ask)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._places > self.settings.max_waiting:
            raise BusyError(f"{self._places} requests are being worked on or wait; try again later")
        if self._answer_bytes > self.settings.max_waiting_bytes:
            raise BusyError("answers that wait to be taken fill the memory; try again later")
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    @asynccontextmanager
    async def _awaited(self, request: Request) -> AsyncIterator[None]:
        """Work on an answer, for as long as that may take and somebody waits for it."""
        seconds = self.settings.answer_seconds
        try:
            async with while_connected(request), asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise SlowAnswerError(
                f"there was no answer within {seconds:g} seconds; send less at once, or try again "
                "later"
            ) from None

    async def _warm_up(self) -> None:
        try:
            await self.compute(self.model.warm_up)
        except Exception:
            log.exception("the model cannot be warmed up, so the service does not become ready")
            raise
        self.ready = True

    async def _keep_model_new(self) -> None:
        """Load what is in the folder when it is asked for, or when it is not what was loaded."""
        if self._folder is None or self._watch is None:
            return
        while True:
            stamp = await self._watch.change()
            if await self._reload(self._folder):
                self._watch.took(stamp)
            else:
                self._watch.failed(stamp)

    async def _reload(self, folder: Path) -> bool:
        """Requests are answered by the present model until the new one is warm, and if it fails."""
        try:
            artifact = await asyncio.to_thread(Artifact.load, folder)
            model = await asyncio.to_thread(Model.of, artifact, self.settings, self._index_folder)
            await self.compute(model.warm_up)
        except (ArtifactError, PatchIndexError, OSError) as error:
            log.error("the artifact cannot be read again; the present model stays: %s", error)
        except Exception:
            log.exception("the artifact cannot be taken; the present model stays")
        else:
            self._take(model)
            await asyncio.to_thread(give_back)
            return True
        self.metrics.reloads.labels("failed").inc()
        return False

    def _take(self, model: Model) -> None:
        """Answer by another model from now on."""
        before, self.model = self.model, model
        before.images.close()
        self.ready = True
        self.metrics.model(model.name.id, model.name.digest)
        self.metrics.reloads.labels("done").inc()
        log.info("reloaded", extra={"fields": {"artifact": model.name.id}})

    async def _forget_images(self) -> None:
        """Let images that are not asked about expire, also where nobody asks for anything."""
        while True:
            await asyncio.sleep(min(_SWEEP_SECONDS, self.settings.map_cache_seconds) or 1)
            self.model.images.expire()

    def _close(self) -> None:
        """Let begun work end, and then its threads, each whatever happens to the others."""
        try:
            self._preparing.shutdown()
        finally:
            try:
                self._searching.shutdown()
            finally:
                self._batcher.close()

    async def _admit(self, request: Request) -> None:
        """A dependency: whoever has a key, as often as the rate allows."""
        client = client_of(request, self.settings)
        request.state.client = client
        self._rates.count(client)
