"""A stub of an OpenAI-compatible server on this machine."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fastervlm.eval.chat import Chat

YES = '{"pred": "yes", "score": 4}'


def completion(text):
    """The body of a chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Stub:
    """A server on this machine; `reply(question, times)` says what comes of the n-th request about a question.

    It gives a text, or (status, body), or (status, body, headers), or a number of seconds to be silent for.
    """

    def __init__(self, reply):
        self.reply, self.requests, self.times, self.started = reply, [], Counter(), []
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = body["messages"][-1]["content"]
                name = asked.partition("Question: ")[2].partition("\n")[0]
                with stub.lock:
                    stub.requests.append((self.path, dict(self.headers), body))
                    stub.started.append(time.monotonic())
                    stub.times[name] += 1
                    said = stub.reply(name, stub.times[name])
                if isinstance(said, float):
                    time.sleep(said)
                    said = YES
                status, text, *headers = (200, completion(said)) if isinstance(said, str) else said
                try:
                    self.send_response(status)
                    for header in headers:
                        for item in header.items():
                            self.send_header(*item)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # the client went away

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def chat(self, **changes):
        settings: dict[str, Any] = {"pause": 0.001, "timeout": 5.0} | changes
        return Chat(self.base, "tiny-judge", **settings)
