"""`mmssl serve`: answer searches and embed inputs over HTTP, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.embedded import model_of_folder, samples_of, searcher_of

if TYPE_CHECKING:
    import socket

    from mmssl.evaluation.embeddings.search import EmbeddedFolder
    from mmssl.recipe.model import Model
    from mmssl.serving.service import ShowFound

HOST = "127.0.0.1"


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `mmssl embed` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The model, if it was moved since. Default: the one that embedded DIR."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with all rows, even if there is an index.")] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Largest number of inputs of one forward pass.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests at a time; the next is told to come again.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 30.0,
    megabytes: Annotated[int, typer.Option(min=1, max=1024, help="Largest size of a file.")] = 16,
) -> None:
    """Serve searches by text, picture and sound in DIR, and embeddings, on 127.0.0.1: a page, and JSON (extra `serve`).

    Requests that wait are embedded together. Ctrl-C or SIGTERM: what is asked is answered, then the server ends.

    Examples:

    `mmssl serve embeddings --port 8000`

    `curl -d 'a red circle' 'http://localhost:8000/search/text?top=5&in=image'`

    `curl --data-binary @photo.jpg http://localhost:8000/embed/image`
    """
    from mmssl.core.errors import RecipeError
    from mmssl.evaluation.embeddings.search import EmbeddedFolder
    from mmssl.serving.limits import Limits
    from mmssl.training.runtime.console import say
    from pipelines.command import one_of

    try:
        import uvicorn

        from mmssl.serving.app import make_app
        from mmssl.serving.service import Service
    except ImportError as error:
        raise RecipeError(
            f"a server needs fastapi and uvicorn ({error}): install mmssl with its extra `serve`"
        ) from error
    chosen = one_of("--device", device, ("auto", "cpu", "cuda"))
    embedded = EmbeddedFolder.open(folder)
    with _listening(port) as listener:
        trained = model_of_folder(embedded, model, _device(chosen))
        searches = {name: searcher_of(embedded, name, exact) for name in embedded.manifest["modalities"]}
        limits = Limits(file_bytes=megabytes << 20, batch=batch, requests=requests, seconds=timeout)
        app = make_app(Service(trained, embedded, searches, _shown(embedded, trained), limits))
        say(f"serving {folder} on http://{HOST}:{listener.getsockname()[1]}, metrics on /metrics; Ctrl-C ends it")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(timeout) + 1,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    import os
    import socket

    from mmssl.core.errors import RecipeError, os_words

    try:
        return socket.create_server((HOST, port), backlog=256)
    except OSError as error:
        why = os_words(OSError(error.errno, os.strerror(error.errno or 0)))
        raise RecipeError(f"--port: cannot listen on {HOST}:{port}: {why}; choose another") from error


def _device(chosen: str) -> str:
    import torch

    from mmssl.core.errors import RecipeError

    if chosen == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device: got 'cuda', and torch sees no CUDA device here; choose auto or cpu")
    return "cuda" if chosen != "cpu" and torch.cuda.is_available() else "cpu"


def _shown(embedded: EmbeddedFolder, model: Model) -> ShowFound | None:
    """Shows a sample that is found; None, with a word, where the samples are not there any more."""
    from mmssl.core.errors import DataError
    from mmssl.reporting.shown import show_sample
    from mmssl.training.runtime.console import say

    try:
        samples = samples_of(embedded, model)
    except DataError as error:
        say(f"answers have keys only, no pictures, sounds or texts: {error}")
        return None

    def show(modality: str, number: int, item: int) -> dict[str, str]:
        thing = show_sample(samples, model.modalities[modality], number, item)
        return {kind: value for kind in ("text", "picture", "sound") if (value := getattr(thing, kind))}

    return show


if __name__ == "__main__":
    from pipelines.command import single

    single(serve)
