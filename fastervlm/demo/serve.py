"""The demo's server, until Ctrl-C."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from PIL import Image

from encoders.errors import UserError
from fastervlm.demo.app import STYLE, build
from fastervlm.demo.engine import SHORT, Engine
from fastervlm.demo.uploads import MOST_BYTES
from fastervlm.embedded import BENCHMARKS, MODEL, embedded_benchmark

EXAMPLES = 6
_FONT, _MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def serve(
    engine: Engine,
    examples: Sequence[tuple[str, str]] = (),
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
    page = build(engine, examples)
    try:
        _, address, public = page.launch(
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
            max_file_size=MOST_BYTES,
            allowed_paths=sorted({str(Path(file).parent) for file, _ in examples}),
            theme=gr.themes.Default(primary_hue="blue", font=_FONT, font_mono=_MONO),
            css_paths=STYLE,
        )
    except OSError:
        where = f"port {port}" if port else "the ports from 7860 on"
        raise UserError(f"Nothing can listen at {host} on {where}; give another --host or --port.") from None
    print(f"fastervlm demo of {engine.subject.name}: {public or address} (Ctrl-C stops it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def examples_for(model: str) -> list[tuple[str, str]]:
    """Pictures of a mini benchmark and a question about each, every one of another kind; none outside a checkout."""
    if not MODEL.is_dir():
        return []
    tiny = Path(model).resolve()
    questions, images, _ = embedded_benchmark(tiny if tiny in BENCHMARKS else MODEL)
    chosen: dict[str, tuple[str, str]] = {}
    used: set[str] = set()
    with questions.open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            kind = " ".join(record["text"].split()[:2])
            if kind not in chosen and record["image"] not in used:
                chosen[kind] = str(images / record["image"]), record["text"].removesuffix(SHORT)
                used.add(record["image"])
    return list(chosen.values())[:EXAMPLES]
