"""The demo's server, until Ctrl-C."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from encoders.errors import UserError
from fastervlm.demo.app import SCRIPT, STYLE, build
from fastervlm.demo.engine import Engine
from fastervlm.demo.examples import Example
from fastervlm.demo.foreign import SoundRequests
from fastervlm.demo.uploads import MOST_BYTES, MOST_CLIP_BYTES

_FONT, _MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def serve(
    engine: Engine,
    examples: Sequence[Example] = (),
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
) -> None:
    """Serve the page until Ctrl-C, and say at which address.

    Raises:
        UserError: nothing can listen there.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such pictures are refused in a sentence
    warnings.filterwarnings("ignore", message="decord cannot read")  # the other reader does
    warnings.filterwarnings("ignore", category=UserWarning, module=r"gradio\.helpers")  # messages to a client that is no page
    port = port_at(host, port)
    page = build(engine, examples)
    try:
        app, address, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            max_file_size=MOST_CLIP_BYTES if engine.shows_clips else MOST_BYTES,
            allowed_paths=sorted({str(Path(file).parent) for file, _ in examples}),
            theme=gr.themes.Default(primary_hue="blue", font=_FONT, font_mono=_MONO),
            css_paths=STYLE,
            app_kwargs={"middleware": [Middleware(SoundRequests)]},
            head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        )
    except OSError:
        raise UserError(f"No port from 7860 on is free at {host}; give --port.") from None
    app.iterators = _Turns()
    print(f"fastervlm demo of {engine.subject.name}: {public or address} (Ctrl-C stops it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


class _Turns(dict[str, Any]):
    """Gradio's turns in progress; one that ends while it is cancelled is removed twice, which would be a traceback."""

    def __delitem__(self, name: str) -> None:
        self.pop(name, None)


def port_at(host: str, port: int | None) -> int | None:
    """The port, any free one for 0; an address at which nothing can listen is refused before Gradio tries."""
    if ":" in host:
        raise UserError(f"--host is {host}, but the page needs an address of IPv4, such as 127.0.0.1 or 0.0.0.0.")
    try:
        with socket.create_server((host, port or 0)) as server:
            return server.getsockname()[1] if port == 0 else port
    except (OSError, OverflowError):
        where = f"{host}, port {port}" if port else host
        raise UserError(f"Nothing can listen at {where}; give another --host or --port.") from None
