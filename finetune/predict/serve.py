"""`python -m finetune serve RUN`: a web page to try a run on a post and a picture.

gradio (extra `serve`) draws the page (`page.py`); it is bound to this machine alone unless `--host`
says otherwise, answers to no other name, and sends nothing anywhere.
"""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from finetune.predict.live_options import LiveOptions
from shards.files import InputError
from shards.options import parse_config

LARGEST_UPLOAD = "16mb"
KEPT_ALIVE = 600
"""Seconds that an idle connection stays open: longer than clients keep theirs. Whoever closes first
must be the client: a request that crosses the server's closing is lost (uvicorn closes after 5)."""
LAST_SECONDS = 2
"""Seconds that open pages have to finish when the server ends; their heartbeats never do."""
EVERYWHERE = ("0.0.0.0", "::", "")
STYLE = """
.gradio-container { width: 100% !important; max-width: 75rem !important; margin: 0 auto !important }
#pick button { min-width: 8rem }
"""


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What serve is asked, beside `LiveOptions`, which the help shows after these."""

    run: str
    """Run directory, one seed's, or a fine-tuned model directory or hub id."""
    compare: str | None = None
    """A second run, its answer beside the first one's."""
    ner: str | None = None
    """A run that finds entities: where none are marked, every pair of them is scored."""
    examples: str | None = None
    """Folder in MNRE's format; some of its validation posts can be clicked. Of its files the page
    gives out those pictures, nothing else."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the page to your network."""
    port: int = 7860
    """Port to listen on; 0: any that is free."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names that browsers may call this page by, such as a proxy's; localhost, --host and
    this machine's own name are allowed anyway."""
    max_megapixels: float = 25
    """A picture that claims more is refused by its header, before anything is decoded."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(LiveOptions, PageOptions):
    """A web page to try a run on a post and a picture."""

    POSITIONAL: ClassVar = ("run",)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ValueError("port must be between 0 and 65535")
        if not 0 < self.max_megapixels <= 25:
            raise ValueError("max_megapixels must be above 0, at most 25")


def listener(host: str, port: int) -> socket.socket:
    """The socket to serve on.

    Raises:
        InputError: the port is taken, or is not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # Of a name that leads nowhere the number is no system error, and negative.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise InputError(f"--host {host} --port {port}: {reason}; give another") from None


def host_names(host: str, more: Sequence[str]) -> list[str]:
    """The names that the page answers to. Any other is another site's page that has its own name
    point here (DNS rebinding), to read what only this machine may."""
    names = ["localhost", "127.0.0.1", "[::1]", *more]
    if host in EVERYWHERE:
        names += [socket.gethostname(), socket.getfqdn()]
        with suppress(OSError):  # a machine without a name of its own
            addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
            names += [bracketed(str(address)) for address in addresses]
    else:
        names.append(bracketed(host))
    return list(dict.fromkeys(names))


def bracketed(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def application(blocks: Any, pictures: Sequence[str], hosts: Sequence[str], folder: Path) -> Any:
    """The FastAPI app of the page.

    Args:
        pictures: files that may be given out. hosts: names that it answers to.
        folder: where uploads lie; removed with the app.
    """
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        shutil.rmtree(folder, ignore_errors=True)

    # No pages of its own: they would draw scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return gr.mount_gradio_app(
        app, blocks, path="/", allowed_paths=list(pictures), max_file_size=LARGEST_UPLOAD,
        footer_links=[], show_error=False, enable_monitoring=False, css=STYLE,
    )  # fmt: skip


def server(app: Any, host: str, port: int) -> Any:
    """The `uvicorn.Server` of the page; says where, once pages are answered."""
    import uvicorn

    name = "localhost" if host in EVERYWHERE else bracketed(host)

    class Server(uvicorn.Server):
        """Says that it is ready."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """As uvicorn does, and a line."""
            await super().startup(sockets)
            print(f"http://{name}:{port}/ is ready; Ctrl-C ends it", flush=True)

    return Server(
        uvicorn.Config(
            app, log_level="warning", timeout_keep_alive=KEPT_ALIVE,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
    )  # fmt: skip


def start(config: ServeConfig) -> None:
    """Load the runs and serve the page until interrupted.

    Raises:
        InputError: gradio is not installed, the port is taken, or a run cannot be read.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError("the page needs gradio: pip install 'fusion-mre[serve]'") from None
    from finetune.predict.extractor import Extractor
    from finetune.predict.live_inputs import live_inputs
    from finetune.predict.page import page
    from finetune.predict.pane import read_examples

    for name in ("finetune.inputs.load", "transformers"):  # they speak of every post
        logging.getLogger(name).setLevel(logging.WARNING)
    with listener(config.host, config.port) as sock:  # before the weights: it may be taken
        live = live_inputs(config)
        names = [config.run, *([config.compare] if config.compare else [])]
        runs = {
            name: Extractor.from_pretrained(name, ner=config.ner, live=live)
            for name in dict.fromkeys(names)
        }
        examples = read_examples(config.examples) if config.examples else []
        folder = tempfile.mkdtemp(prefix="fusion-mre-page-")
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads; read when the page is built
        blocks = page(runs, examples, round(config.max_megapixels * 1e6))
        pictures = [picture for _, picture, *_ in examples]
        hosts = host_names(config.host, config.allowed_hosts)
        app = application(blocks, pictures, hosts, Path(folder))
        with suppress(KeyboardInterrupt):
            server(app, config.host, sock.getsockname()[1]).run([sock])


def main(argv: Sequence[str]) -> None:
    """python -m finetune serve RUN"""
    prog = "python -m finetune serve"
    example = f"{prog} runs/promu --examples SAMPLE/mnre"
    start(parse_config(ServeConfig, argv, prog=prog, example=example))
