"""The chat endpoint: what is sent, what is tried again, and how answers are read."""

import pytest
from chat_server import say, serve

from tarjax.config import UserError
from tarjax.evals import endpoint
from tarjax.evals.endpoint import Endpoint, verdict


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(endpoint, "WAIT", 0.001)
  monkeypatch.setenv("no_proxy", "*")


def test_what_is_sent():
  with serve(lambda n, request: (200, say("Yes"))) as (url, seen):
    assert Endpoint(url, "judge-7b", "secret").ask(b"\x89PNG...", "image/png", "Is it?") == "Yes"
    assert Endpoint(f"{url}/chat/completions/", "j").ask(b"JPG", "image/jpeg", "?") == "Yes"
  first, second = seen
  assert first["path"] == second["path"] == "/v1/chat/completions"
  assert (first["key"], second["key"]) == ("Bearer secret", None)
  assert (first["model"], first["question"]) == ("judge-7b", "Is it?")
  assert (first["mime"], first["picture"]) == ("image/png", b"\x89PNG...")


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_trouble_that_passes_is_waited_out(status):
  with serve(lambda n, r: (status, b"busy") if n < 3 else (200, say("no"))) as (url, seen):
    assert Endpoint(url, "j").ask(b"", "image/png", "?") == "no"
  assert len(seen) == 4


def test_trouble_that_stays_ends_in_a_sentence():
  with serve(lambda n, r: (500, b"broken")) as (url, seen):
    with pytest.raises(UserError, match=r"no answer in 7 tries: 500 Internal Server Error$"):
      Endpoint(url, "j").ask(b"", "image/png", "?")
  assert len(seen) == 7
  with pytest.raises(UserError, match="no answer in 7 tries: .*refused"):
    Endpoint(url, "j").ask(b"", "image/png", "?")  # nobody listens there any more


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_tried_again(status):
  with serve(lambda n, r: (status, b"no such model")) as (url, seen):
    with pytest.raises(UserError, match=f"refuses: {status} .*no such model"):
      Endpoint(url, "j").ask(b"", "image/png", "?")
  assert len(seen) == 1


@pytest.mark.parametrize(
  "body", [b"<html>", b"{}", b'{"choices": []}', b"[1]", say(None), say(3), b"\xff\xfe"]
)
def test_a_reply_without_an_answer_is_empty(body):
  with serve(lambda n, r: (200, body)) as (url, seen):
    assert Endpoint(url, "j").ask(b"", "image/png", "?") == ""
  assert len(seen) == 1


def test_an_address_is_http():
  with pytest.raises(UserError, match="--endpoint localhost:8000 is no http address"):
    Endpoint("localhost:8000", "j")


def test_the_wait_that_a_server_asks_for():
  assert endpoint.seconds(None) == endpoint.seconds("soon") == 0 and endpoint.seconds("12") == 12
  assert endpoint.seconds("Wed, 21 Oct 2015 07:28:00 GMT") < 0


@pytest.mark.parametrize("text", ["Yes", " yes.\n", "YES!", "**Yes**", '"Yes"', "Yes, it does."])
def test_yes(text):
  assert verdict(text) is True


@pytest.mark.parametrize("text", ["No", "no.", "_No_", "No: the cup is blue."])
def test_no(text):
  assert verdict(text) is False


@pytest.mark.parametrize(
  "text",
  ["", "maybe", "Yes or no", "yes/no", "Yes, or no?", "Yesterday", "not", "None", "I think yes"]
  + ["The answer is no.", "Nope", '{"answer": "yes"}', "Y", "damaged", "no-one, yes"],
)
def test_nothing_is_guessed(text):
  assert verdict(text) is None
