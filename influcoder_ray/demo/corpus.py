"""The demo's corpus: the documented names of Python's standard library, as questions and answers.

Every machine that runs the demo has it, so nothing is downloaded. The sources are read with `ast` and
never imported, so nothing of what they do on import happens.
"""

import ast
import inspect
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from influcoder_ray.errors import UserError

CORPUS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "prompt", "response", "module", "kind")],
)

_MIN_CHARACTERS = 23  # "Generate a random UUID." says all that there is to say.
_FULL_CHARACTERS = 30
_MAX_CHARACTERS = 400

# The public module that a person imports, and the source files that make it up where their names differ
# from it: a module written in C has a twin in Python (decimal, datetime, io), a package has parts whose
# names are re-exported. Files that a Python release does not have are passed over.
_MODULES: dict[str, tuple[str, ...]] = {
    "abc": (),
    "argparse": (),
    "ast": (),
    "asyncio": (
        "asyncio.runners",
        "asyncio.tasks",
        "asyncio.taskgroups",
        "asyncio.timeouts",
        "asyncio.locks",
        "asyncio.queues",
        "asyncio.streams",
        "asyncio.subprocess",
        "asyncio.futures",
        "asyncio.coroutines",
        "asyncio.threads",
        "asyncio.protocols",
        "asyncio.transports",
        "asyncio.events",
        "asyncio.base_events",
        "asyncio.exceptions",
    ),
    "base64": (),
    "bisect": (),
    "bz2": (),
    "calendar": (),
    "cmd": (),
    "code": (),
    "codecs": (),
    "collections": (),
    "collections.abc": ("_collections_abc",),
    "concurrent.futures": (
        "concurrent.futures._base",
        "concurrent.futures.thread",
        "concurrent.futures.process",
    ),
    "configparser": (),
    "contextlib": (),
    "copy": (),
    "csv": (),
    "dataclasses": (),
    "datetime": ("_pydatetime", "datetime"),
    "decimal": ("_pydecimal",),
    "difflib": (),
    "dis": (),
    "doctest": (),
    "email": (),
    "email.message": (),
    "email.header": (),
    "email.policy": ("email.policy", "email._policybase"),
    "email.parser": (),
    "email.generator": (),
    "email.charset": (),
    "email.encoders": (),
    "email.utils": (),
    "email.mime.application": (),
    "email.mime.audio": (),
    "email.mime.base": (),
    "email.mime.image": (),
    "email.mime.multipart": (),
    "email.mime.text": (),
    "enum": (),
    "filecmp": (),
    "fileinput": (),
    "fnmatch": (),
    "fractions": (),
    "ftplib": (),
    "functools": (),
    "getopt": (),
    "getpass": (),
    "gettext": (),
    "glob": (),
    "graphlib": (),
    "gzip": (),
    "hashlib": (),
    "heapq": (),
    "hmac": (),
    "html": (),
    "html.parser": (),
    "http": (),
    "http.client": (),
    "http.cookies": (),
    "http.server": (),
    "importlib": (),
    "importlib.resources": ("importlib.resources", "importlib.resources._common"),
    "importlib.util": ("importlib.util", "importlib._abc"),
    "inspect": (),
    "io": ("_pyio",),
    "ipaddress": (),
    "json": (),
    "json.decoder": (),
    "json.encoder": (),
    "linecache": (),
    "locale": (),
    "logging": (),
    "logging.config": (),
    "logging.handlers": (),
    "lzma": (),
    "mailbox": (),
    "mimetypes": (),
    "multiprocessing": ("multiprocessing.context", "multiprocessing.process"),
    "multiprocessing.connection": (),
    "multiprocessing.managers": (),
    "multiprocessing.pool": (),
    "multiprocessing.shared_memory": (),
    "netrc": (),
    "operator": (),
    "optparse": (),
    "os": (),
    "os.path": ("posixpath", "genericpath"),
    "pathlib": ("pathlib", "pathlib._local", "pathlib._abc", "pathlib._os", "pathlib.types"),
    "pdb": (),
    "pickle": (),
    "pkgutil": (),
    "platform": (),
    "plistlib": (),
    "poplib": (),
    "pprint": (),
    "profile": (),
    "pstats": (),
    "queue": (),
    "random": (),
    "re": (),
    "reprlib": (),
    "runpy": (),
    "sched": (),
    "secrets": (),
    "selectors": (),
    "shelve": (),
    "shlex": (),
    "shutil": (),
    "smtplib": (),
    "socket": (),
    "socketserver": (),
    "ssl": (),
    "stat": (),
    "statistics": (),
    "string": (),
    "subprocess": (),
    "sysconfig": (),
    "tarfile": (),
    "tempfile": (),
    "textwrap": (),
    "threading": (),
    "timeit": (),
    "tkinter": (),
    "tkinter.filedialog": (),
    "tokenize": (),
    "tomllib": ("tomllib._parser",),
    "trace": (),
    "traceback": (),
    "tracemalloc": (),
    "turtle": (),
    "types": (),
    "typing": (),
    "unittest": (
        "unittest.case",
        "unittest.suite",
        "unittest.loader",
        "unittest.main",
        "unittest.runner",
        "unittest.result",
        "unittest.signals",
        "unittest.async_case",
    ),
    "unittest.mock": (),
    "urllib.error": (),
    "urllib.parse": (),
    "urllib.request": (),
    "urllib.robotparser": (),
    "uuid": (),
    "warnings": ("warnings", "_py_warnings"),
    "weakref": (),
    "webbrowser": (),
    "xml.dom.minidom": (),
    "xml.etree.ElementTree": (),
    "xml.sax.saxutils": (),
    "xmlrpc.client": (),
    "xmlrpc.server": (),
    "zipapp": (),
    "zipfile": ("zipfile", "zipfile._path"),
    "zoneinfo": ("zoneinfo._zoneinfo", "zoneinfo._common", "zoneinfo._tzpath"),
}

_QUESTIONS = {
    "function": "What does {name} do in Python?",
    "class": "What is the class {name} for in Python?",
    "method": "What does the method {name} do in Python?",
    "property": "What does the property {name} hold in Python?",
}


@dataclass(frozen=True)
class _Documented:
    """A public name of a module, with the docstring that explains it."""

    qualname: str
    kind: str
    docstring: str


def standard_library_corpus() -> pa.Table:
    """The standard library of the running Python as examples, one a documented public name.

    Columns (all strings): `id` (module.qualname, unique), `prompt` (a question about the name), `response`
    (the first paragraph of its docstring, 23 to 400 characters, unique), `module` (the module that a
    person imports) and `kind` (function, class, method or property). The order, and for one Python
    release the content, is always the same. Raises UserError where this Python carries no sources.
    """
    columns: dict[str, list[str]] = {name: [] for name in CORPUS_SCHEMA.names}
    ids: set[str] = set()
    responses: set[str] = set()
    root = Path(sysconfig.get_path("stdlib"))
    for module, parts in _MODULES.items():
        for part in parts or (module,):
            for found in _documented_names(root, part):
                example_id = f"{module}.{found.qualname}"
                response = opening_paragraph(found.docstring)
                if response is None or response in responses or example_id in ids:
                    continue
                ids.add(example_id)
                responses.add(response)
                columns["id"].append(example_id)
                columns["prompt"].append(_QUESTIONS[found.kind].format(name=example_id))
                columns["response"].append(response)
                columns["module"].append(module)
                columns["kind"].append(found.kind)
    if not ids:
        raise UserError(
            f"{root}: this Python carries no sources of its standard library, which the demo's corpus is "
            "made of: use a Python from python.org, a Linux distribution, conda or uv"
        )
    return pa.table(columns, schema=CORPUS_SCHEMA)


def opening_paragraph(docstring: str) -> str | None:
    """The first paragraph of prose of a docstring on one line, cut at a sentence's end.

    A line that only repeats the signature does not count, a paragraph under 30 characters takes the next
    one along, and the announcement of a list or an example that follows ("Attributes:") is left out. None
    where less than 23 characters of prose are there, where no sentence ends within 400 characters, or
    where the text holds what cannot be printed or written as UTF-8.
    """
    text = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        words = " ".join(_without_signature(paragraph).split())
        if words.startswith((">>>", "- ", "* ", "+ ", ":param", "Example", "Usage")):
            break
        text = f"{text} {words}".strip()
        if len(text) >= _FULL_CHARACTERS:
            break
    ends = [end.end() for end in re.finditer(r"[.!?](?= )", text[: _MAX_CHARACTERS + 1])]
    if len(text) > _MAX_CHARACTERS or (text.endswith(":") and ends):
        text = text[: ends[-1]] if ends else ""
    text = re.sub(r"(, e\.g\.?)?:$", ".", text)
    if len(text) < _MIN_CHARACTERS or not text.isprintable():
        return None
    return text


def _without_signature(paragraph: str) -> str:
    """The paragraph less the leading lines that are calls such as `walk(top[, onerror]) -> iterator`."""
    lines = paragraph.split("\n")
    while lines and re.fullmatch(r"\s*[\w.]+\s?\([^()]*(\([^()]*\)[^()]*)*\)(\s*->.*|\s*[:.]?)", lines[0]):
        lines.pop(0)
    return "\n".join(lines)


def _documented_names(root: Path, part: str) -> Iterator[_Documented]:
    """The documented public functions, classes, methods and properties of one source file, in its order."""
    stem = root.joinpath(*part.split("."))
    source = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)
    if source is None:
        return
    with tokenize.open(source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of old escapes in the library itself
        tree = ast.parse(stream.read(), filename=str(source))
    yield from _walk(tree.body, prefix="")


def _walk(body: list[ast.stmt], prefix: str) -> Iterator[_Documented]:
    for node in body:
        if isinstance(node, ast.If):
            yield from _walk(node.body + node.orelse, prefix)
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _walk(node.body + handled + node.orelse, prefix)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            qualname = prefix + node.name
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield _Documented(qualname, _kind(node, prefix), docstring)
            if isinstance(node, ast.ClassDef):
                yield from _walk(node.body, f"{qualname}.")


def _kind(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if decorators & {"property", "cached_property", "DynamicClassAttribute"}:
        return "property"
    return "method" if prefix else "function"
