"""The routes: /v1 for programs, / and /about for people. What they answer: answers.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from milnet.album import known_photos
from milnet.artifacts import strict
from milnet.doubt import COVERAGE, UNLIKE
from milnet.errors import ArtifactError, ImageError, NumericError, UsageError
from milnet.scoring import Score, in_bursts, ranked
from milnet.server import answers, lessons
from milnet.server.decoders import DecoderError
from milnet.server.engine import Engine, Judged, Served, digest_of
from milnet.server.gauges import Gauges
from milnet.server.problems import MEDIA_TYPE, Problem, busy
from milnet.server.uploads import Limits, Room, Upload, ids_of, one_image, read_json, uploads
from milnet.version import __version__

log = logging.getLogger("milnet.serve")

WEB = Path(__file__).parent.parent / "web"
NDJSON = "application/x-ndjson"
_TOGETHER = 256  # photos of one call that wait to be judged by their ids, so that others have their turn
_MANY = 64  # photos from which an answer is made in another thread
_SECONDS = 120.0  # that a photo may take from its last byte to its score
_LOOKS = 8  # calls of ids at once
_READ = 4  # files of pools that are read and decoded at once
_PREVIEW, _POOL = 1024, 320  # pixels of a long side
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}")
_PARTS = {"schema": {"type": "object", "required": ["photos"], "properties": {
    "photos": {"type": "array", "items": {"type": "string", "format": "binary"}}}}}  # fmt: skip
_BINARY = {"schema": {"type": "string", "format": "binary"}}


class State:
    """What the routes share."""

    def __init__(self, engine: Engine, limits: Limits, gauges: Gauges, *, needs_token: bool) -> None:
        self.engine, self.limits, self.gauges, self.needs_token = engine, limits, gauges, needs_token
        self.room = Room(limits.together)
        self.teaching = asyncio.Lock()
        self.reading = asyncio.Semaphore(_READ)
        self.ready = False
        self.looks = 0
        self.running: set[asyncio.Task[Any]] = set()
        gauges.watch("milnet_waiting_photos", "Photos accepted and not yet scored.", lambda: engine.gate.inside)
        gauges.watch("milnet_held_bytes", "Bytes of files in memory.", lambda: self.room.held)
        gauges.watch("milnet_remembered_photos", "Photos that need not be sent again.", lambda: len(engine.memory))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """For a call of ids: its photos are in no queue, but their scores take memory. Problem 429 beyond a few."""
        if self.looks >= _LOOKS:
            raise busy(1)
        self.looks += 1
        try:
            yield
        finally:
            self.looks -= 1

    def served(self, name: str | None) -> Served:
        """The model that is asked for."""
        found = self.engine.models.get(self.engine.default if name is None else name)
        if found is None:
            names = ", ".join(self.engine.models)
            raise Problem(404, "no such model here", expected=names, got=str(name)[:200])
        return found


def create_app(state: State) -> FastAPI:
    """The application without its guard."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await state.engine.start()
        state.ready = True
        yield
        state.ready = False
        await asyncio.to_thread(state.engine.stop)

    app = FastAPI(
        title="milnet",
        version=__version__,
        description="Scores of photos beside photos that people have already judged: how a large panel would vote, how "
        "sure that is, and which rated photos say so.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_url="/v1/openapi.json",
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    _add_errors(app)
    _add_scores(app, state)
    _add_tastes(app, state)
    _add_pictures(app, state)
    _add_about_itself(app, state)
    _add_pages(app, state)
    return app


# ---- errors ----------------------------------------------------------------------------------------------------------


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    always = (400, 401, 403, 404, 405, 408, 413, 421, 422, 429, 431)
    return {status: {"description": "A problem.", "content": content} for status in sorted({*always, *statuses})}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return Problem(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors()).response()

    @app.exception_handler(DecoderError)
    async def stopping(_: Request, error: DecoderError) -> Response:
        return Problem(503, str(error), headers={"Retry-After": "5"}).response()

    @app.exception_handler(Exception)
    async def other(request: Request, error: Exception) -> Response:
        log.error("%s: %s", request.url.path, type(error).__name__, exc_info=error)
        return Problem(500, "something went wrong that should not; the service's log says what").response()


def _invalid(errors: Sequence[Any]) -> Problem:
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
    got = str(first.get("input"))[:100]
    return Problem(422, f"{where or 'the body'}: {first['msg']}", expected=first["msg"], got=got)


async def _body(state: State, request: Request, kind: type[BaseModel]) -> Any:
    try:
        return kind.model_validate(await read_json(request, state.room))
    except ValidationError as error:
        raise _invalid(error.errors()) from None


# ---- scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failed:
    """A photo that cannot be scored. No exception: its traceback would keep the file until the call is answered."""

    reason: str
    digest: str | None = None
    unknown: bool = False


def _add_scores(app: FastAPI, state: State) -> None:
    body: dict[str, Any] = {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _PARTS,
                "image/jpeg": _BINARY,
                "application/octet-stream": _BINARY,
                "application/json": {"schema": {"$ref": "#/components/schemas/Ids"}},
            },
        }
    }
    stream = {
        NDJSON: {
            "schema": {"type": "string"},
            "example": '{"score": {...}}\n{"failure": {...}}\n{"done": {"scored": 1, "failed": 1}}\n',
        }
    }
    # Read from the request itself: of a small photo's answer FastAPI's own reading would be a good part.
    of_model = _query("model", "name of a model; else the default one")
    body["parameters"] = [of_model, _query("name", "of the photo, where the body is one image")]

    def answered(what: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
        return {200: {"model": what, "content": stream}, **_problems(415, 503)}

    @app.post("/v1/score", tags=["scores"], response_model=None, openapi_extra=body, responses=answered(answers.Scores))
    async def score(request: Request) -> Response:
        """Score one or many photos. Ask for `application/x-ndjson` to have each as soon as it is done."""
        return await _answer(state, request, "score")

    @app.post(
        "/v1/explain", tags=["scores"], response_model=None, openapi_extra=body,
        responses=answered(answers.Explanations),
    )  # fmt: skip
    async def explain(request: Request) -> Response:
        """Score photos and say which rated photos moved each score, and by how much."""
        return await _answer(state, request, "explain")

    @app.post(
        "/v1/bursts", tags=["scores"], response_model=None, responses={200: {"model": answers.Bursts}, **_problems()},
        openapi_extra={"parameters": [of_model], "requestBody": {"required": True, "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Ids"}}}}},
    )  # fmt: skip
    async def bursts(request: Request) -> Response:
        """Which of photos that were sent before are bursts. Ids that are not remembered are left out."""
        with state.looking():
            return await bursts_of(request)

    async def bursts_of(request: Request) -> Response:
        served = state.served(request.query_params.get("model"))
        named = dict.fromkeys(ids_of(await read_json(request, state.room)))
        wanted = [one for one in named if state.engine.memory.get(served.key(one)) is not None]
        turns = asyncio.Semaphore(_TOGETHER)

        async def again(one: str) -> Judged | None:
            async with turns:
                return await state.engine.again(served, one)

        found = await _while_there(request, asyncio.gather(*map(again, wanted)))
        judged = [one for one in found if one is not None]
        scorer = served.scorer
        timed = [scorer.timed(one.seen.aside, one.seen.semantic) for one in judged]
        placed = await asyncio.to_thread(in_bursts, [one.score for one in judged], timed)
        rows = [
            {"id": one.digest, "group": score.group, "rank": score.rank, "keep": score.keep}
            for one, score in zip(judged, placed, strict=True)
            if score.group is not None
        ]
        return _json({"bursts": rows})


def _query(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": "string"}}


class _Stream(StreamingResponse):
    """Lines, and what is to be done when they end, even where the client went before the first one."""

    def __init__(self, content: AsyncIterator[bytes], *after: Callable[[], None]) -> None:
        super().__init__(content, media_type=NDJSON)
        self.after = list(after)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for one in self.after:
                one()


async def _answer(state: State, request: Request, what: Literal["score", "explain"]) -> Response:
    with ExitStack() as stack:
        if request.headers.get("content-type", "").lower().startswith("application/json"):
            stack.enter_context(state.looking())
        response = await _answered(state, request, what)
        if isinstance(response, _Stream):  # it looks until the last line
            response.after.append(stack.pop_all().close)
        return response


async def _answered(state: State, request: Request, what: Literal["score", "explain"]) -> Response:
    served = state.served(request.query_params.get("model"))
    sent = await _sent(state, request, served)
    if NDJSON in request.headers.get("accept", ""):
        return _Stream(_lines(state, served, sent, what), lambda: _cancel(sent))
    try:
        await _while_there(request, asyncio.gather(*(task for _, task in sent), return_exceptions=True))
    finally:
        _cancel(sent)
    results = [(upload, task.result()) for upload, task in sent]
    for _, result in results:
        _count(state, served, result)
    failures = [_failure(upload, error) for upload, error in results if isinstance(error, _Failed)]
    good = [(upload, one) for upload, one in results if isinstance(one, Judged)]
    if not good:
        first = failures[0]["reason"]
        detail = first if len(failures) == 1 else f"none of {len(failures)} photos could be scored; the first: {first}"
        raise Problem(422, detail, expected="an image", failures=failures)

    def written() -> Response:
        placed = _placed(served, [one for _, one in good])
        scores = [
            _score(served, upload, one.digest, score, what) for (upload, one), score in zip(good, placed, strict=True)
        ]
        # one by one: a thread that writes JSON lets no other one go on before it is done
        text = f'{{"model":{_dumps(served.name)},"scores":[{",".join(map(_dumps, scores))}],'
        return _json_text(f'{text}"failures":{_dumps(failures)}}}')

    return written() if len(good) < _MANY else await asyncio.to_thread(written)


def _count(state: State, served: Served, result: Judged | _Failed) -> None:
    kind = "scored" if isinstance(result, Judged) else "unknown" if result.unknown else "failed"
    state.gauges.photos.labels("(taste)" if served.made_here else served.name, kind).inc()


def _placed(served: Served, judged: Sequence[Judged]) -> list[Score]:
    """With stars, folder percentiles and bursts."""
    scores = [one.score for one in judged]
    if len(scores) > 1:
        scorer = served.scorer
        scores = in_bursts(scores, [scorer.timed(one.seen.aside, one.seen.semantic) for one in judged])
    return ranked(scores, served.scorer.stars, served.scorer.stars_of)


_Sent = list[tuple[Upload, "asyncio.Task[Judged | _Failed]"]]


async def _sent(state: State, request: Request, served: Served) -> _Sent:
    """The photos of a body, each on its way as soon as it is there.

    Where too many wait already, a call is refused at its first photo; the following ones of a call wait.
    """
    sent: _Sent = []
    if state.engine.gate.full:
        raise _refused(state)
    turns = asyncio.Semaphore(_TOGETHER)
    try:
        async with aclosing(uploads(request, state.limits, state.room)) as several:
            async for upload in several:
                if upload.data is None:
                    task = asyncio.create_task(_again(state, served, upload, turns))
                else:
                    size = len(upload.data)
                    try:
                        if not sent and state.engine.gate.full:
                            raise _refused(state)
                        await state.engine.gate.enter()
                    except BaseException:
                        state.room.give(size)
                        raise
                    task = asyncio.create_task(_one(state, served, upload))
                    # not in the task: one that is cancelled before its first step does nothing at all
                    task.add_done_callback(lambda _, size=size: _left(state, size))  # type: ignore[misc]
                state.running.add(task)
                task.add_done_callback(state.running.discard)
                sent.append((replace(upload, data=None), task))
                del upload
                if len(sent) % _MANY == 0:
                    await asyncio.sleep(0)  # ids come without a pause
                # A call waits for its own photos, and is refused only for those of others: it could never be sent else.
                while state.room.held > state.room.most // 2 and (own := [one for _, one in sent if not one.done()]):
                    await asyncio.wait(own, return_when=asyncio.FIRST_COMPLETED)
    except BaseException:
        _cancel(sent)
        raise
    return sent


def _left(state: State, size: int) -> None:
    state.engine.gate.leave()
    state.room.give(size)


def _refused(state: State) -> Problem:
    state.gauges.refused.inc()
    return busy(state.engine.gate.seconds())


async def _one(state: State, served: Served, upload: Upload) -> Judged | _Failed:
    assert upload.data is not None
    try:
        with state.gauges.photo_seconds.time():
            async with asyncio.timeout(_SECONDS):
                return await state.engine.score(served, upload.name, upload.data)
    except TimeoutError:
        return _Failed(f"took more than {_SECONDS:g} s: the service is too busy, send it again later")
    except ImageError as error:
        return _Failed(error.reason, await digest_of(upload.data))
    except NumericError as error:
        return _Failed(str(error))


async def _again(state: State, served: Served, upload: Upload, turns: asyncio.Semaphore) -> Judged | _Failed:
    try:
        async with turns:
            found = await state.engine.again(served, upload.id)
    except NumericError as error:
        return _Failed(str(error), upload.id)
    return _Failed("not remembered: send the photo itself", upload.id, unknown=True) if found is None else found


def _cancel(sent: _Sent) -> None:
    for _, task in sent:
        task.cancel()


async def _while_there(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is given up when the client goes."""
    going = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({going, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not going.done():
            raise Problem(400, "the client has gone")
        return going.result()
    finally:
        gone.cancel()
        going.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await going


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _lines(state: State, served: Served, sent: _Sent, what: Literal["score", "explain"]) -> AsyncIterator[bytes]:
    """A line for each photo as it is done."""
    scored = failed = 0
    uploaded = {task: upload for upload, task in sent}
    finished: asyncio.Queue[asyncio.Task[Judged | _Failed]] = asyncio.Queue()
    for task in uploaded:
        task.add_done_callback(finished.put_nowait)
    try:
        while scored + failed < len(uploaded):
            done = [await finished.get()]
            while len(done) < _MANY and not finished.empty():
                done.append(finished.get_nowait())
            text = []
            for task in sorted(done, key=lambda task: uploaded[task].index):
                upload = uploaded[task]
                try:
                    result = task.result()
                except Exception as error:
                    log.error("a photo: %s", type(error).__name__, exc_info=error)
                    result = _Failed("something went wrong that should not; the service's log says what")
                _count(state, served, result)
                if isinstance(result, _Failed):
                    failed += 1
                    text.append(_dumps({"failure": _failure(upload, result)}))
                else:
                    scored += 1
                    placed = _placed(served, [result])[0]
                    text.append(_dumps({"score": _score(served, upload, result.digest, placed, what)}))
            yield ("\n".join(text) + "\n").encode()
        yield (_dumps({"done": {"scored": scored, "failed": failed}}) + "\n").encode()
    finally:
        _cancel(sent)


def _failure(upload: Upload, error: _Failed) -> dict[str, Any]:
    found: dict[str, Any] = {"index": upload.index, "photo": upload.name, "reason": error.reason}
    if error.digest is not None:
        found["id"] = error.digest
    if error.unknown:
        found["unknown"] = True
    return found


def _score(
    served: Served, upload: Upload, digest: str, score: Score, what: Literal["score", "explain"]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": upload.index,
        "photo": score.photo,
        "id": digest,
        "score": score.score,
        "low": score.low,
        "high": score.high,
        "spread": score.spread,
        "percentile": score.percentile,
        "stars": score.stars,
        "unlike": score.unlike,
        "outside": score.unlike is not None and score.unlike > UNLIKE,
        "distribution": score.distribution,
        "signals": None if score.signals is None else vars(score.signals),
        "group": score.group,
        "rank": score.rank,
        "keep": score.keep,
        "folder_percentile": score.folder_percentile,
    }
    if what == "explain":
        numbers = served.numbers
        found |= {
            "base": score.base,
            "own": score.own,
            "rest": score.rest,
            "references": [
                {
                    "id": one.id,
                    "number": numbers[one.id],
                    "photo": served.photos[numbers[one.id]] if served.photos else None,
                    "similarity": one.similarity,
                    "votes": one.votes,
                    "influence": one.influence,
                }
                for one in score.references
            ],
        }
    return found


def _dumps(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json(data: Any, status: int = 200) -> Response:
    return _json_text(_dumps(data), status)


def _json_text(text: str, status: int = 200) -> Response:
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")


# ---- tastes ----------------------------------------------------------------------------------------------------------


def _add_tastes(app: FastAPI, state: State) -> None:
    lesson = {"requestBody": {"required": True, "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Lesson"}}}}}  # fmt: skip

    @app.post(
        "/v1/tastes", tags=["tastes"], status_code=201, response_model=None, openapi_extra=lesson,
        responses={201: {"model": answers.Model}, **_problems(409)},
    )  # fmt: skip
    async def teach(request: Request) -> Response:
        """Learn a taste from ratings of photos that were sent before; it says honestly whether that helps."""
        wanted: answers.Lesson = await _body(state, request, answers.Lesson)
        general = state.served(wanted.model)
        if general.scorer.taste is not None:
            raise Problem(422, "a taste itself; expected the general model to begin with", got=general.name)
        ratings = {one.id: float(one.rating) for one in wanted.ratings}
        if len(ratings) < len(wanted.ratings):
            raise Problem(422, "a photo is rated twice", expected="one rating a photo", got="more than one")
        if state.teaching.locked():
            raise Problem(429, "another taste is being taught", headers={"Retry-After": "5"})
        async with state.teaching:
            name = _new_name(state, wanted.name)
            known = {one: state.engine.memory.get(general.key(one)) for one in ratings}
            missing = [one for one, found in known.items() if found is None]
            if missing:
                raise Problem(
                    409, "some of the rated photos are not remembered: send them to /v1/score, then again",
                    missing=missing,
                )  # fmt: skip
            kept = [one for one in known.values() if one is not None]
            names, seen = [one.name for one in kept], [one.seen for one in kept]
            try:
                served = await asyncio.to_thread(
                    lessons.teach, name, general, list(ratings), names, seen, list(ratings.values())
                )
            except UsageError as error:
                raise Problem(
                    422, str(error), expected="10 or more ratings of different photos, not all equal"
                ) from None
            state.engine.models[name] = served
        return _json(_model(served), 201)

    @app.get(
        "/v1/tastes/{name}/download", tags=["tastes"], response_model=None,
        responses={200: {"content": {"application/zip": _BINARY}}, **_problems()},
    )  # fmt: skip
    async def download(name: str) -> Response:
        """The MODEL folder of a taste that was taught here, for `milnet score --model`."""
        served = _taste(state, name)
        headers = {"Content-Disposition": f'attachment; filename="{served.name}.zip"'}
        return Response(served.archive, 200, headers, "application/zip")

    @app.delete("/v1/tastes/{name}", tags=["tastes"], status_code=204, response_model=None, responses={**_problems()})
    async def remove(name: str) -> Response:
        """Forget a taste that was taught here."""
        del state.engine.models[_taste(state, name).name]
        return Response(status_code=204)


def _taste(state: State, name: str) -> Served:
    served = state.served(name)
    if not served.made_here:
        raise Problem(404, "no taste that was taught here", got=name[:200])
    return served


def _new_name(state: State, wanted: str | None) -> str:
    here = state.engine.models
    if sum(one.made_here for one in here.values()) >= lessons.MOST:
        raise Problem(422, "too many tastes are kept; remove one", expected=f"at most {lessons.MOST}")
    if wanted is None:
        return next(name for n in range(1, lessons.MOST + len(here) + 2) if (name := f"taste-{n}") not in here)
    if not _NAME.fullmatch(wanted) or wanted.endswith((".", " ")):
        raise Problem(422, "not a name", expected="letters, digits, spaces, . _ -; at most 60", got=wanted[:100])
    if wanted in here:
        raise Problem(
            409, "a model of that name is there already: choose another, or remove it", got=wanted, missing=[]
        )
    return wanted


# ---- pictures --------------------------------------------------------------------------------------------------------


def _add_pictures(app: FastAPI, state: State) -> None:
    webp: dict[int | str, dict[str, Any]] = {200: {"content": {"image/webp": _BINARY}}}

    @app.post(
        "/v1/preview", tags=["pictures"], response_model=None, responses={**webp, **_problems(415, 503)},
        openapi_extra={"requestBody": {"required": True, "content": {
            "image/jpeg": _BINARY, "application/octet-stream": _BINARY}}},
    )  # fmt: skip
    async def preview(request: Request) -> Response:
        """A WebP of an image, at most 1,024 pixels: for formats a browser cannot show, like HEIC and RAW."""
        if state.engine.gate.full:
            raise _refused(state)
        data = await one_image(request, state.limits, state.room)
        size = len(data)
        try:
            await state.engine.gate.enter()
            try:
                future = asyncio.wrap_future(state.engine.decoders.preview(data, _PREVIEW))
                picture, _ = await _while_there(request, future)
            except ImageError as error:
                raise Problem(422, error.reason, expected="an image") from None
            finally:
                state.engine.gate.leave()
        finally:
            state.room.give(size)
        return Response(picture, media_type="image/webp")

    @app.get(
        "/v1/models/{name}/pool/{number}", tags=["pictures"], response_model=None,
        responses={**webp, **_problems(503)},
    )  # fmt: skip
    async def of_pool(request: Request, name: str, number: int) -> Response:
        """A photo of a model's pool, where `milnet pool images` found it on this machine, unchanged since."""
        pool = state.served(name).scorer.pool
        nothing = Problem(404, "no picture of that photo is known on this machine (`milnet pool images` tells where)")
        if not 0 <= number < len(pool) or not pool.pixels[number]:
            raise nothing
        digest = pool.pixels[number]
        async with state.reading:
            data = await asyncio.to_thread(_file_of, digest, state.limits.photo)
            if data is None:
                raise nothing
            try:
                future = asyncio.wrap_future(state.engine.decoders.preview(data, _POOL))
                picture, found = await _while_there(request, future)
            except ImageError:
                raise nothing from None
        if found != digest:
            raise nothing
        return Response(picture, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


def _file_of(digest: str, most: int) -> bytes | None:
    try:
        path = known_photos().get(digest)
        if path is None or not path.is_file() or path.stat().st_size > most:
            return None
        return path.read_bytes()
    except (ArtifactError, UsageError, OSError):
        return None


# ---- about itself ----------------------------------------------------------------------------------------------------


def _add_about_itself(app: FastAPI, state: State) -> None:
    @app.get(
        "/v1/models", tags=["models"], response_model=None, responses={200: {"model": answers.Models}, **_problems()}
    )
    async def models() -> Response:
        """The models, what is known of each, and what a call may send."""
        limits = state.limits
        return _json(
            {
                "models": [_model(one) for one in state.engine.models.values()],
                "default": state.engine.default,
                "limits": {"bytes": limits.photo, "pixels": limits.pixels, "photos": limits.photos},
            }
        )

    @app.get("/v1/health", tags=["service"], response_model=None, responses={200: {"model": answers.Health}})
    async def health() -> Response:
        """The service is there."""
        return _json({"status": "ok", "version": __version__})

    @app.get(
        "/v1/ready", tags=["service"], response_model=None,
        responses={200: {"model": answers.Health}, **_problems(503)},
    )  # fmt: skip
    async def ready() -> Response:
        """It can score: models are loaded, decoders run, and it is not stopping."""
        if not (state.ready and state.engine.decoders.alive()):
            raise Problem(503, "starting or stopping", headers={"Retry-After": "2"})
        return _json({"status": "ready", "version": __version__})

    @app.get(
        "/v1/metrics", tags=["service"], response_model=None,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems()},
    )  # fmt: skip
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(state.gauges.text(), media_type="text/plain; version=0.0.4")

    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            for kind in (answers.ProblemDetails, answers.Ids, answers.Lesson):
                own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                schema["components"]["schemas"] |= {**own.pop("$defs", {}), kind.__name__: own}
            if state.needs_token:
                schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"token": []}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _model(served: Served) -> dict[str, Any]:
    scorer = served.scorer
    taste, doubt = scorer.taste, scorer.doubt
    srcc = None if doubt.stale else doubt.srcc
    found: dict[str, Any] = {
        "name": served.name,
        "kind": "model" if taste is None else "taste",
        "digest": scorer.digest,
        "introduction": served.introduction,
        "values": [float(value) for value in scorer.values],
        "stars": list(scorer.stars),
        "stars_of": scorer.stars_of,
        "pool": len(scorer.pool),
        "table": scorer.model.table_name,
        "whole": scorer.whole,
        "exact": scorer.exact,
        "coverage": COVERAGE,
        "unlike_limit": UNLIKE,
        "quality": None if srcc is None or not math.isfinite(srcc) else {"srcc": float(srcc)},
        "removable": served.made_here,
    }
    if taste is not None:
        checked = taste.checked
        numbers: Mapping[str, Any] = {**asdict(checked), "difference": checked.difference}
        found["checked"] = {
            **strict(numbers),
            "beats": checked.beats,
            "worse": checked.worse,
            "verdict": checked.verdict,
        }
    return found


# ---- pages -----------------------------------------------------------------------------------------------------------


def _add_pages(app: FastAPI, state: State) -> None:
    templates = Environment(
        loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages = {"/": "serve.html.jinja", "/about": "about.html.jinja"}
    files = {path.name: path for path in WEB.iterdir() if path.suffix in _KINDS}

    def page(template: str) -> Any:
        async def shown() -> Response:
            text = templates.get_template(template).render(version=__version__, needs_token=state.needs_token)
            return Response(text, media_type="text/html", headers={"Cache-Control": "no-cache"})

        return shown

    for path, template in pages.items():
        app.add_api_route(path, page(template), include_in_schema=False)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in files:  # the names are those that were there at the start: never a path
            raise Problem(404, "no such file", got=name[:100])
        content = files[name].read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_KINDS[files[name].suffix], headers=headers)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)
