"""Asks an OpenAI-compatible chat endpoint about pictures, and reads its answers as yes or no."""

import base64
import email.utils
import http.client
import json
import re
import time
import urllib.error
import urllib.request

from tarjax.config import UserError

KEY = "TARJAX_JUDGE_KEY"  # environment variable with the endpoint's key
TRIES = 7
WAIT = 1.0  # seconds before the second try; doubled each time
LONGEST = 60.0
TIMEOUT = 120.0
AGAIN = (408, 409, 425, 429)  # and 500 or more: worth another try


class Endpoint:
  """`ask(picture, mime, question) -> answer`; threads may share it.

  Args:
    url: of the API, like http://host:8000/v1, or of its chat/completions.
    model: the judge's name there.
    key: sent as a bearer token if not empty.
  """

  def __init__(self, url: str, model: str, key: str = ""):
    if not url.startswith(("http://", "https://")):
      raise UserError(f"--endpoint {url} is no http address")
    url = url.rstrip("/")
    self.url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
    self.model = model
    self._headers = {"Content-Type": "application/json"}
    self._headers |= {"Authorization": f"Bearer {key}"} if key else {}

  def ask(self, picture: bytes, mime: str, question: str) -> str:
    """The answer's text; "" when a reply holds none.

    Raises:
      UserError: the endpoint cannot be reached or is overloaded for long, or it refuses.
    """
    image = f"data:{mime};base64,{base64.b64encode(picture).decode()}"
    content = [
      {"type": "image_url", "image_url": {"url": image}},
      {"type": "text", "text": question},
    ]
    talk = [{"role": "user", "content": content}]
    body = {"model": self.model, "messages": talk, "temperature": 0, "max_tokens": 16}
    reply = self._post(json.dumps(body).encode())
    try:
      text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
      return ""
    return text if isinstance(text, str) else ""

  def _post(self, body: bytes) -> bytes:
    wait, fault = WAIT, ""
    for attempt in range(TRIES):
      request = urllib.request.Request(self.url, body, self._headers)
      asked = 0.0
      try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
          return reply.read()
      except urllib.error.HTTPError as e:
        said = e.read(300).decode(errors="replace").strip()
        if e.code < 500 and e.code not in AGAIN:
          raise UserError(f"{self.url} refuses: {e.code} {e.reason} {said}".strip()) from e
        fault, asked = f"{e.code} {e.reason}", seconds(e.headers.get("Retry-After"))
      except (OSError, http.client.HTTPException) as e:
        fault = str(getattr(e, "reason", e)) or type(e).__name__
      if attempt + 1 < TRIES:
        time.sleep(min(max(wait, asked), LONGEST))
        wait *= 2
    raise UserError(f"{self.url} gave no answer in {TRIES} tries: {fault}")


def seconds(text: str | None) -> float:
  """A Retry-After header, in seconds or as a date; 0 when there is none."""
  if not text:
    return 0.0
  if text.isdigit():
    return float(text)
  try:
    return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
  except ValueError:
    return 0.0


def verdict(answer: str) -> bool | None:
  """Yes, no, or neither: one of the words, alone or first of a sentence without the other."""
  said = answer.lower()
  found = re.match(r"[\W_]*(yes|no)([\W_]*$|\s*[.,;:!\u2013\u2014])", said)
  both = len(set(re.findall(r"\b(yes|no)\b", said))) > 1
  return found[1] == "yes" if found and not both else None
