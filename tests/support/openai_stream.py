"""A server on this machine that streams answers as OpenAI's protocol has it, and tells counts as vLLM does."""

import itertools
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = 8  # of an answer
METRICS = """# HELP vllm:request_success_total Count of successfully processed requests.
vllm:request_success_total{engine="0",finished_reason="length"} 9.0
vllm:request_success_total{engine="1",finished_reason="length"} 2.0
vllm:request_success_total{engine="0",finished_reason="abort"} 3.0
vllm:request_success_total{engine="0",finished_reason="stop"} 70.0
vllm:num_requests_running{engine="0"} 4.0
vllm:num_requests_running_by_reason{engine="0"} 50.0
vllm:num_requests_waiting{engine="0"} 5.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
"""


class Streams:
    """Answers as `plan` says of a picture: `tokens`, `ended`, `name`, and what is done `before` the first and the last token.

    `bodies` are what it was asked, `most` how many requests were in flight at a time. None is answered before so many are there
    `together`.
    """

    status = 200

    def __init__(self, plan, together=1):
        self.plan, self.together, self.bodies, self.most, self.flying = plan, together, [], 0, 0
        self.lock, self.full, self.numbers = threading.Lock(), threading.Event(), itertools.count()

    def answer(self, body, write):
        with self.lock:
            self.bodies.append(body)
            self.flying += 1
            self.most, number = max(self.most, self.flying), next(self.numbers)
            if self.flying == self.together:
                self.full.set()
        self.full.wait(30)
        usual = {"first": nothing, "last": nothing, "tokens": TOKENS, "ended": "length", "name": f"r{number}"}
        end = self.stream(usual | self.plan.get(shown(body), {}), write)
        with self.lock:
            self.flying -= 1
        write(end)  # what lets the client ask again

    def stream(self, told, write):
        for place in range(told["tokens"]):
            last = place == told["tokens"] - 1
            if place == 0 or last:
                told["last" if last else "first"]()
            choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": told["ended"] if last else None}
            write(chunk(told["name"], [choice]))
        usage = {"prompt_tokens": 70, "completion_tokens": told["tokens"], "total_tokens": 70 + told["tokens"]}
        return chunk(told["name"], [], usage=usage) + b"data: [DONE]\n\n" if told["ended"] else b""


def nothing():
    pass


def shown(body):
    """The picture of a request, as the request writes it."""
    return body["messages"][0]["content"][0]["image_url"]["url"]


def chunk(name, choices, **more):
    told = {"id": name, "object": "chat.completion.chunk", "created": 0, "model": "model", "choices": choices, **more}
    return f"data: {json.dumps(told)}\n\n".encode()


@contextmanager
def serving(streams):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(streams.status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            streams.answer(body, self.wfile.write)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
