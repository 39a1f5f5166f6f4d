"""A chat endpoint on this machine, whose replies a test decides."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def say(text):
  """The body of a reply in OpenAI's form."""
  return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextlib.contextmanager
def serve(reply):
  """Yields (address, list of requests); `reply(number, request) -> (status, body)`.

  A request is {"path", "key", "model", "question", "mime", "picture"}. A status of 0 closes the
  connection without a word.
  """
  seen, lock = [], threading.Lock()

  class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      image, text = body["messages"][0]["content"]
      head, data = image["image_url"]["url"].split(",", 1)
      request = {
        "path": self.path,
        "key": self.headers.get("Authorization"),
        "model": body["model"],
        "question": text["text"],
        "mime": head.removeprefix("data:").removesuffix(";base64"),
        "picture": base64.b64decode(data),
      }
      with lock:
        seen.append(request)
        number = len(seen) - 1
      status, answer = reply(number, request)
      if not status:
        self.close_connection = True
        return
      self.send_response(status)
      self.send_header("Content-Length", str(len(answer)))
      if status == 429:
        self.send_header("Retry-After", "0")
      self.end_headers()
      self.wfile.write(answer)

    def log_message(self, *args):
      pass

  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
