"""Ask an OpenAI-compatible server about a picture, and print the answer as it comes.

`python -m playground.ask_server http://localhost:8000/v1 MODEL picture.png 'What is this?' [--visual-tokens 29]`

A picture is sent whole. A .safetensors file of `fastervlm embed` is sent in its place, to a vLLM with `--enable-mm-embeds`.
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import os
from pathlib import Path
from typing import Any


def content_of(file: Path) -> dict[str, Any]:
    """A picture, or its embeddings, as a part of a message."""
    if file.suffix == ".safetensors":
        from fastervlm.serving.embeds import content_part, load_embeds

        return content_part(load_embeds(file))
    kind = mimetypes.guess_type(file)[0] or "image/png"
    data = base64.b64encode(file.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="address of the server, such as http://localhost:8000/v1")
    parser.add_argument("model", help="name of the model there")
    parser.add_argument("image", type=Path, help="a picture, or embeddings of one")
    parser.add_argument("question")
    parser.add_argument("--visual-tokens", type=int, help="fewer tokens than the server keeps, for this request (vLLM)")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer")
    told = parser.parse_args()

    from openai import OpenAI

    client = OpenAI(base_url=told.base, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    content: Any = [content_of(told.image), {"type": "text", "text": told.question}]
    more = {} if told.visual_tokens is None else {"mm_processor_kwargs": {"visual_tokens": told.visual_tokens}}
    stream = client.chat.completions.create(
        model=told.model,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=told.max_tokens,
        stream=True,
        extra_body=more,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
