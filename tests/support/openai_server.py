"""An OpenAI-compatible server on this machine that a test writes the answers for."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class OpenAIServer:
    """`answer(picture, text, body)` gives a text, or a status and what is wrong; `models` is what /models lists.

    `asked` holds the texts of the requests, `headers` those of each, `most` how many were waiting at a time.
    """

    def __init__(self, answer, models):
        self.answer, self.models, self.asked, self.headers, self.most = answer, models, [], [], 0
        self.lock, self.waiting = threading.Lock(), 0
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                told.headers.append(dict(self.headers))
                self.reply(200, {"object": "list", "data": told.models})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                picture, text = parts(body)
                with told.lock:
                    told.asked.append(text)
                    told.headers.append(dict(self.headers))
                    told.waiting += 1
                    told.most = max(told.most, told.waiting)
                try:
                    said = told.answer(picture, text, body)
                finally:
                    with told.lock:
                        told.waiting -= 1
                if isinstance(said, str):
                    message = {"role": "assistant", "content": said}
                    self.reply(200, {"choices": [{"message": message}], "usage": {"prompt_tokens": 7}})
                else:
                    self.reply(said[0], {"error": {"message": said[1]}})

            def reply(self, status, told):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_port}/v1"


def parts(body):
    """The picture and the text of a request; the picture comes first."""
    *shown, text = body["messages"][-1]["content"]
    if not shown:
        return None, text["text"]
    url = shown[0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))), text["text"]


@contextmanager
def serving(answer, models):
    """The server, as long as the context lasts."""
    told = OpenAIServer(answer, models)
    threading.Thread(target=told.server.serve_forever, args=(0.01,), daemon=True).start()
    yield told
    told.server.shutdown()
    told.server.server_close()
