"""Text that every machine has: docstrings of Python's standard library and facts about digits."""

import ast
import functools
import importlib.util
import inspect
import random
import re
from pathlib import Path

from tarjax.data.scenes import COLOURS, DIGITS

MODULES = tuple(
  """argparse ast asyncio base64 bisect builtins bz2 calendar cmath cmd code codecs collections
  collections.abc compileall concurrent.futures configparser contextlib copy csv ctypes dataclasses
  datetime decimal difflib dis doctest email.message email.policy enum filecmp fileinput fnmatch
  fractions ftplib functools getopt getpass gettext glob gzip hashlib heapq hmac html.parser
  http.client http.cookiejar http.server imaplib importlib.util inspect io ipaddress itertools json
  keyword linecache locale logging logging.handlers lzma mailbox math mimetypes multiprocessing
  netrc numbers operator optparse os os.path pathlib pdb pickle pickletools pkgutil platform
  plistlib poplib pprint profile pyclbr pydoc queue random re reprlib sched secrets selectors shelve
  shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string struct
  subprocess symtable sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback
  tracemalloc types unittest unittest.mock urllib.parse urllib.request urllib.robotparser
  uuid warnings wave weakref webbrowser wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree
  xmlrpc.client zipfile zipimport zoneinfo""".split()
)
NUMBERS = (
  *DIGITS,
  *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
  "eighteen",
)
QUESTIONS = ("What does {} do?", "What is {}?", "Explain {}.", "Describe {} in one sentence.")
LONGEST = 140  # characters of an answer taken from a docstring


@functools.cache
def docstrings() -> dict[str, str]:
  """Dotted name -> docstring, sorted by name, of the public parts of `MODULES`.

  They are read from the modules' source files, so that nothing a process imports or patches can
  change them, and from the objects themselves where a module is compiled. They depend on the
  Python version. Modules that this build of Python lacks are passed over.
  """
  found: dict[str, str] = {}
  seen: set[str] = set()
  for path in MODULES:
    try:
      spec = importlib.util.find_spec(path)
    except (ImportError, ValueError):
      continue
    if spec is None:
      continue
    prefix = "" if path == "builtins" else f"{path}."
    parts = _source(spec.origin) if spec.has_location else None
    for name, doc in _compiled(path) if parts is None else parts:
      if doc and len(doc) > 20 and doc not in seen:
        seen.add(doc)
        found[prefix + name if name else path] = inspect.cleandoc(doc)
  return dict(sorted(found.items()))


def _source(file: str | None) -> list[tuple[str, str | None]] | None:
  """(name, docstring) of a source file: the module ("") and its public definitions."""
  if not file or not file.endswith(".py"):
    return None
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  tree = ast.parse(Path(file).read_bytes())
  found = [("", ast.get_docstring(tree))]
  for node in tree.body:
    if isinstance(node, kinds) and not node.name.startswith("_"):
      found.append((node.name, ast.get_docstring(node)))
      for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, kinds) and not part.name.startswith("_"):
          found.append((f"{node.name}.{part.name}", ast.get_docstring(part)))
  return found


def _compiled(path: str) -> list[tuple[str, str | None]]:
  """The same of a module without source, whose functions and types nobody can patch."""
  module = importlib.import_module(path)
  found = [("", module.__doc__)]
  for key, value in sorted(vars(module).items()):
    if not key.startswith("_") and (inspect.isbuiltin(value) or inspect.isclass(value)):
      found.append((key, value.__doc__))
      members = sorted(vars(value).items()) if inspect.isclass(value) else ()
      for part, member in members:
        doc = getattr(member, "__doc__", None)
        if not part.startswith("_") and isinstance(doc, str):
          found.append((f"{key}.{part}", doc))
  return found


@functools.cache
def summaries() -> tuple[tuple[str, str], ...]:
  """(name, first sentence) of the docstrings whose first sentence is short plain English."""
  found = []
  for key, doc in docstrings().items():
    first = re.split(r"(?<=[a-z)])\.\s|\n\s*\n", " ".join(doc.split("\n\n")[0].split()))[0]
    first = first.rstrip(".") + "."
    plain = first.isascii() and first[0].isupper() and "->" not in first and "(" not in first[:20]
    if plain and 20 <= len(first) <= LONGEST and first.count(" ") >= 3:
      found.append((key, first))
  return tuple(found)


def fact(rng: random.Random) -> tuple[str, str]:
  """A question about digits or colours in words, and its short answer."""
  a, b = rng.sample(range(10), 2)
  one, two = DIGITS[a], DIGITS[b]
  kind = rng.randrange(8)
  if kind == 0:
    return f"What is {one} plus {two}?", NUMBERS[a + b]
  if kind == 1:
    return f"What is {DIGITS[max(a, b)]} minus {DIGITS[min(a, b)]}?", DIGITS[abs(a - b)]
  if kind == 2:
    return f"Which is larger, {one} or {two}?", DIGITS[max(a, b)]
  if kind == 3:
    return f"Which is smaller, {one} or {two}?", DIGITS[min(a, b)]
  if kind == 4:
    return f"What comes after {one}?", NUMBERS[a + 1]
  if kind == 5:
    return f"Is {one} even or odd?", "odd" if a % 2 else "even"
  if kind == 6:
    return f"How is {a} written in words?", one
  colour = rng.choice(tuple(COLOURS))
  word = rng.choice((one, colour))
  return f"Is {word} a digit or a colour?", "colour" if word == colour else "digit"


def exchange(rng: random.Random) -> tuple[str, str]:
  """A question and its answer: two thirds from docstrings, one third facts."""
  known = summaries()
  if not known or rng.random() < 1 / 3:
    return fact(rng)
  key, answer = rng.choice(known)
  return rng.choice(QUESTIONS).format(key), answer
