"""Requests that no page of the demo sends: they get an answer, and the terminal no traceback."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse

_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]
_SENTENCE = "The page of this demo sends no such request; load it anew."


class SoundBlocks(gr.Blocks):
    """Blocks whose handlers are given values of any kind and number."""

    async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Run a handler; see Gradio.

        Raises:
            gr.Error: always a sentence; what our own handlers failed at is in the terminal by then.
        """
        try:
            return await super().process_api(*args, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception:
            raise gr.Error(_SENTENCE, print_exception=False) from None


class SoundRequests:
    """Middleware of the server around all of Gradio's routes: what they cannot read is a bad request."""

    def __init__(self, app: Callable[[Any, _Receive, _Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        """Pass a request on, and answer it where a route fails; an answer that had begun by then ends there."""
        begun = False

        async def seen(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, seen)
        except Exception:
            if scope["type"] != "http":
                raise
            if begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await JSONResponse({"error": _SENTENCE}, status_code=400)(scope, receive, send)
