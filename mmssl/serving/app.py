"""The HTTP side of a server: routes, limits, time-outs and headers. All answers are JSON, but those of the page and the metrics."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from mmssl.core.errors import did_you_mean
from mmssl.serving.limits import Refusal
from mmssl.serving.service import Service

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine; a page of another one, whose name was pointed here, is refused (DNS rebinding)."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data: blob:; media-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TYPES = {"page.js": "text/javascript", "page.css": "text/css"}


def make_app(service: Service) -> FastAPI:
    """The application of a service, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="mmssl", docs_url=None, redoc_url=None, lifespan=lifespan)
    guard = _Guard(service)
    app.middleware("http")(guard)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    app.add_exception_handler(HTTPException, _refuse_path)
    _add_queries(app, service)
    _add_page(app, service)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **service.describe()}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(guard.running, len(service.batcher)))

    return app


def _add_queries(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/search/{modality}")
    async def search(
        request: Request,
        modality: str,
        top: int = Query(10, ge=1, le=limits.top),
        target: list[str] | None = Query(None, alias="in"),
        show: bool = False,
    ) -> dict[str, Any]:
        """The samples nearest to the body: a text in UTF-8, or the bytes of a file."""
        _require(modality, service.queries, "no query of the modality", 404)
        for name in target or ():
            _require(name, service.targets, "in: got", 422)
        data = await _body(
            request, limits.text_bytes if service.queries[modality] else limits.file_bytes, limits.seconds
        )
        (row,) = await _in_time(_embed(service, modality, [data]), limits.seconds)
        targets = list(dict.fromkeys(target or service.targets))
        found = await _in_time(run_in_threadpool(service.search, row, targets, top, show), limits.seconds)
        return {"query": modality, "found": found}

    @app.post("/embed/{modality}")
    async def embed(request: Request, modality: str) -> dict[str, Any]:
        """Unit-norm embeddings: of the body; or, if it is JSON, of its `inputs`, texts or files in Base64."""
        _require(modality, service.queries, "no query of the modality", 404)
        listed = request.headers.get("content-type", "").partition(";")[0].strip() == "application/json"
        text = service.queries[modality]
        most = 2 * limits.file_bytes if listed else limits.text_bytes if text else limits.file_bytes
        data = await _body(request, most, limits.seconds)
        inputs = _listed(data, text, limits.inputs) if listed else [data]
        rows = await _in_time(_embed(service, modality, inputs), limits.seconds)
        return {"modality": modality, "embeddings": [row.tolist() for row in rows]}


def _add_page(app: FastAPI, service: Service) -> None:
    loader = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = loader.from_string((HERE / "page.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        queries=service.queries,
        extensions=service.extensions,
        searched=service.describe()["searched"],
        top=service.limits.top,
    )

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/page.js", include_in_schema=False)
    @app.get("/page.css", include_in_schema=False)
    async def part(request: Request) -> Response:
        name = request.url.path.lstrip("/")
        return Response((HERE / name).read_bytes(), media_type=TYPES[name])


class _Guard:
    """Around every request: who may ask, how many at a time, headers, counts; and a sentence for whatever goes wrong."""

    def __init__(self, service: Service) -> None:
        self.service, self.running = service, 0

    async def __call__(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        self.running += 1
        try:
            self._admit(request)
            response = await answer(request)
        except Refusal as refusal:
            response = _said(refusal.status, refusal.sentence)
        except Exception:
            log.exception("%s %s", request.method, request.url.path)
            response = _said(500, "the server failed on this request; its log says why")
        finally:
            self.running -= 1
        response.headers.update(HEADERS)
        route = getattr(request.scope.get("route"), "path", "other")
        self.service.metrics.answered(route, response.status_code, time.monotonic() - began)
        return response

    def _admit(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in HOSTS:
            raise Refusal(403, "got a request for another host, wanted one for localhost")
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refusal(403, "got a request from the page of another site, wanted one from this page")
        if self.running > self.service.limits.requests and request.method == "POST":
            raise Refusal(503, f"{self.service.limits.requests} requests are worked on: ask again in a moment")


async def _embed(service: Service, modality: str, inputs: Sequence[bytes | str]) -> list[np.ndarray]:
    """Decode in threads, and embed in one forward pass with all that waits."""
    views = [await run_in_threadpool(service.view, modality, one) for one in inputs]
    futures = [asyncio.wrap_future(future) for future in service.embed(modality, views)]
    return list(await asyncio.gather(*futures))


async def _in_time(work: Awaitable[Any], seconds: float) -> Any:
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError as error:
        raise Refusal(504, f"the answer took longer than {seconds:g} s: ask for less, or later") from error


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """The body, read until it is too long or too late."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise Refusal(413, f"got a body of {int(said):,} bytes, wanted at most {most:,}: send less")
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise Refusal(413, f"got a body of more than {most:,} bytes: send less")
    except TimeoutError as error:
        raise Refusal(408, f"the body did not come within {seconds:g} s: send it faster") from error
    if not data:
        raise Refusal(422, "got an empty body, wanted a text, or the bytes of a file")
    return bytes(data)


def _listed(data: bytes, text: bool, most: int) -> list[bytes | str]:
    """The inputs in a JSON body."""
    wanted = 'wanted {"inputs": [...]} with ' + ("texts" if text else "files in Base64")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, f"got a body that is not JSON, {wanted}") from error
    inputs = body.get("inputs") if isinstance(body, dict) and set(body) == {"inputs"} else None
    if not isinstance(inputs, list) or not inputs or not all(isinstance(one, str) for one in inputs):
        raise Refusal(422, f"got other JSON, {wanted}")
    if len(inputs) > most:
        raise Refusal(422, f"got {len(inputs):,} inputs, wanted at most {most:,}: send them in several requests")
    if text:
        return inputs
    try:
        return [base64.b64decode(one, validate=True) for one in inputs]
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, f"got an input that is not Base64, {wanted}") from error


def _require(name: str, allowed: Sequence[str] | dict[str, bool], what: str, status: int) -> None:
    if name not in allowed:
        near = did_you_mean(name[:40], allowed)
        raise Refusal(status, f"{what} {name[:40]!r}{near}, wanted one of: {', '.join(allowed)}")


async def _refuse_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = first["loc"][-1]
    return _said(422, f"{name}: got {str(first.get('input'))[:40]!r}: {first['msg'].lower()}")


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wanted = "wanted POST /search/MODALITY or /embed/MODALITY, or GET /, /health or /metrics"
    return _said(error.status_code, f"{str(error.detail).lower()}: {wanted}")


def _said(status: int, sentence: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": sentence}, status, headers)
