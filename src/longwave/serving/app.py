"""The routes of the API, and what every request passes before them."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from longwave.errors import first_line
from longwave.serving.errors import HANGS_UP, ApiError
from longwave.serving.forms import FORMS, Answered, Form
from longwave.serving.jobs import Done, Job
from longwave.serving.metrics import PLAIN_TEXT
from longwave.serving.requests import Asked, ChatAsked, CompletionAsked
from longwave.serving.service import Service, unknown_model

OPEN = "/health"  # needs no key
DISCARDED = 4  # times the largest body: so much is read before a refusal, because most clients listen only afterwards

logger = logging.getLogger("longwave")


def build_app(service: Service) -> FastAPI:
    """The API of one model."""
    app = FastAPI(openapi_url=None)  # no pages of documentation: they would load scripts from elsewhere
    app.add_middleware(Guard, service=service)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return reply(error)

    @app.exception_handler(404)
    async def no_path(request: Request, error: Any) -> Response:
        return reply(ApiError(404, f"there is no {request.url.path} here. See docs/serving.md.", code="unknown_path"))

    @app.exception_handler(405)
    async def no_method(request: Request, error: Any) -> Response:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{request.url.path} does not take {request.method}. Use {allowed}."
        return reply(ApiError(405, message, code="method_not_allowed"), error.headers)

    @app.get("/health")
    async def health() -> Response:
        state = "ok" if service.worker.open else "draining"
        return JSONResponse({"status": state}, 200 if service.worker.open else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        worker = service.worker
        text = service.metrics.text(int(worker.running is not None), len(worker.waiting))
        return PlainTextResponse(text, media_type=PLAIN_TEXT)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.about()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.name:
            raise unknown_model(name, service.name)
        return JSONResponse(service.about())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answered(service, request, CompletionAsked)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answered(service, request, ChatAsked)

    return app


async def answered(service: Service, request: Request, kind: type[Asked]) -> Response:
    """Read a request, queue its prompts, and answer it whole or as a stream."""
    service.worker.check(1)
    body, loop = await body_of(request, service.settings.max_body), asyncio.get_running_loop()
    asked, tasks = await loop.run_in_executor(service.reader, service.read, kind, body)
    jobs = [Job(task, loop) for task in tasks]
    service.worker.submit(jobs)
    form = FORMS[kind](asked, tasks, service.name)
    headers = {"x-longwave-factor": f"{form.factor}"}
    if asked.stream:
        return Stream(stream(form, jobs), lambda: service.worker.cancel(jobs), headers)
    return JSONResponse(form.whole(await whole(service, request, jobs)), headers=headers)


async def body_of(request: Request, largest: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 415 for something other than JSON, 413 for too much of it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page in a browser may send other types anywhere without asking
        raise ApiError(415, f"the content type must be application/json, got {kind or 'none'}.", code="content_type")
    parts, size, more = bytearray(), 0, True
    while more and size <= DISCARDED * largest:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise hung_up()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if size <= largest:
            parts += message.get("body", b"")
    if size > largest:
        raise ApiError(413, f"the body is larger than the {largest} bytes allowed (--max-body).", code="too_large")
    return bytes(parts)


async def whole(service: Service, request: Request, jobs: Sequence[Job]) -> list[Answered]:
    """All answers; nothing more is computed once the client has hung up."""

    async def collect() -> list[Answered]:
        found = []
        for job in jobs:
            *pieces, done = [each async for each in job.answer()]
            assert isinstance(done, Done)
            found.append(Answered(job.task, "".join(map(str, pieces)), done))
        return found

    work, gone = asyncio.ensure_future(collect()), asyncio.ensure_future(until_hung_up(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise hung_up()
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        service.worker.cancel(jobs)


class Stream(StreamingResponse):
    """Server-sent events. However they end, also before the first one, nothing more is computed."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self.end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end()


async def stream(form: Form, jobs: Sequence[Job]) -> AsyncIterator[str]:
    """The chunks of an answer."""
    new = 0
    try:
        for index, job in enumerate(jobs):
            if (first := form.first()) is not None:
                yield event(form.chunk(index, first))
            async for each in job.answer():
                if isinstance(each, Done):
                    new += len(each.ids)
                    yield event(form.chunk(index, form.part(""), each.reason))
                else:
                    yield event(form.chunk(index, form.part(each)))
        if form.asked.include_usage:
            yield event(form.last(new))
        yield "data: [DONE]\n\n"
    except ApiError as error:  # the status has been sent
        yield event(error.body())


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, allow_nan=False)}\n\n"


async def until_hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def hung_up() -> ApiError:
    return ApiError(HANGS_UP, "the client went away.")


def reply(error: ApiError, headers: Any = None) -> Response:
    return JSONResponse(error.body(), error.status, headers=headers)


class Guard:
    """Asks every request for the key, counts it by status, and answers where the server fails."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def watched(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            refusal = self.refusal(scope)
            await (self.app if refusal is None else reply(refusal, {"WWW-Authenticate": "Bearer"}))(
                scope, receive, watched
            )
        except Exception as error:
            logger.warning("a request failed (%s: %s).", type(error).__name__, first_line(error))
            if not status:
                await reply(ApiError(500, f"the request failed in the server ({type(error).__name__})."))(
                    scope, receive, watched
                )
        finally:
            if scope["path"].startswith("/v1/"):
                self.service.metrics.replied(status or HANGS_UP)

    def refusal(self, scope: Any) -> ApiError | None:
        """Why a request may not be: its key is missing or another one."""
        key = self.service.settings.api_key
        if key is None or scope["path"] == OPEN:
            return None
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, value = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), key.encode()):
            return None
        return ApiError(
            401, "the API key is missing or wrong. Send it as Authorization: Bearer KEY.", code="invalid_api_key"
        )
