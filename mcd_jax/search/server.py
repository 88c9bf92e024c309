"""The local web page: http.server on this machine's own address.

  GET /                      the form;  ?q=TEXT asks with a text, ?like=N with image number N, both with their sum; &k=COUNT
  POST /                     multipart/form-data with the part "image": asks with that picture
  GET /api/search?q=...      the same as JSON: {"hits": [{"number", "name", "score", "concepts"}]}
  GET /thumbnail/N           image number N of the index as a JPEG of at most 256 px

Files are asked for by their number in the index: no part of a request becomes a path. Requests whose Host is another than this
server's are refused (a page elsewhere could otherwise read the answers through a name of its own that leads here).
"""
import email.parser
import email.policy
import functools
from http import HTTPStatus, server
import json
import socket
from urllib import parse

import cv2
import numpy as np

from mcd_jax import command
from mcd_jax.data import decode as decode_lib
from mcd_jax.search import page as page_lib
from mcd_jax.search.engine import BYTES, Refused

MOST = 200       # hits
SIDE = 256       # px of a thumbnail
TIMEOUT = 30     # s that a client may take for its next bytes


class Wrong(Exception):
    """A request that can't be served: status, sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Server(server.ThreadingHTTPServer):
    """Serves one engine; `url` is its address."""
    daemon_threads = True

    def __init__(self, engine, host="127.0.0.1", port=0, count=24, title="Search"):
        """
        Args:
          engine: `engine.Engine`. host: address to listen on. port: 0 takes a free one, see `url`.
          count: hits that are shown. title: of the page.
        """
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.engine, self.count, self.title = engine, count, title
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.server_port}"
        self.hosts = {f"{own}:{self.server_port}" for own in (name, "localhost")}
        self.thumbnail = functools.lru_cache(2048)(self._thumbnail)

    def _thumbnail(self, row):
        engine = self.engine
        if not 0 <= row < len(engine.folder) or not engine.index.good[row]:
            raise Wrong(HTTPStatus.NOT_FOUND, f"there is no image number {row}")
        try:
            pixels = decode_lib.decode(engine.folder.read(row), resolution_needed=lambda height,
                                       width: min(1.0, SIDE / max(height, width)))
        except decode_lib.Bad as error:
            raise Wrong(HTTPStatus.GONE, f"image number {row} can no longer be read ({error.cause})") from error
        height, width = pixels.shape[:2]
        share = min(1.0, SIDE / max(height, width))
        size = max(1, round(width * share)), max(1, round(height * share))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]))[1].tobytes()


class Handler(server.BaseHTTPRequestHandler):
    server_version, sys_version, timeout = "mcd_jax", "", TIMEOUT

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def log_message(self, *_):
        pass

    def _answer(self, answer):
        try:
            if self.headers.get("Host", "") not in self.server.hosts:
                raise Wrong(HTTPStatus.MISDIRECTED_REQUEST, f"this is {self.server.url}: ask for it by that name")
            self._send(HTTPStatus.OK, *answer())
        except (Wrong, Refused) as error:
            self.close_connection = True   # what is left of the request is not read
            status = getattr(error, "status", HTTPStatus.BAD_REQUEST)
            if self.path.startswith("/api/"):
                self._send(status, "application/json", json.dumps({"error": str(error)}))
            else:
                self._send(status, "text/html", self._page(problem=str(error)))
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send(self, status, kind, body):
        body = body if isinstance(body, bytes) else body.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/jpeg" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", page_lib.POLICY + "; frame-ancestors 'none'")
        self.send_header("Referrer-Policy", "no-referrer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _get(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/thumbnail/"):
            return "image/jpeg", self.server.thumbnail(_number(path.removeprefix("/thumbnail/"), "the number of an image"))
        if path not in ("/", "/api/search"):
            raise Wrong(HTTPStatus.NOT_FOUND, "there is no such page: / is the search")
        try:
            fields = parse.parse_qs(query, keep_blank_values=True, errors="strict", max_num_fields=8, encoding="utf-8")
        except ValueError as error:
            raise Refused("the question is not UTF-8 text in an address") from error
        unknown = fields.keys() - {"q", "like", "k"}
        if unknown:
            raise Refused(f"the address has {sorted(unknown)[0]!r}; it takes q (text), like (number of an image), k (how many)")
        text, like = fields.get("q", [""])[-1], fields.get("like", [""])[-1]
        count = _number(fields["k"][-1], "k") if "k" in fields else self.server.count
        if not 1 <= count <= MOST:
            raise Refused(f"k={count} must lie in [1, {MOST}]")
        if not text and not like and path == "/":
            return "text/html", self._page()
        engine, asked, questions = self.server.engine, [], []
        if like:
            row = _number(like, "like")
            questions.append(engine.member(row))
            asked.append(f"like {self._name(row)}")
        if text or not like:
            questions.append(engine.text(text))
            asked.insert(0, f"\u201c{text}\u201d")
        hits = self._hits(engine.nearest(questions, count))
        if path == "/":
            return "text/html", self._page(text, hits, ", ".join(asked))
        names = ("number", "name", "score", "concepts")
        return "application/json", json.dumps({"hits": [dict(zip(names, hit)) for hit in hits]})

    def _post(self):
        if self.path != "/":
            raise Wrong(HTTPStatus.NOT_FOUND, "pictures are sent to /")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Wrong(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if int(length) > BYTES + 2 ** 16:
            raise Wrong(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the picture is too large: at most {BYTES:,} bytes are read")
        body = self.rfile.read(int(length))
        data = _part(self.headers.get("Content-Type", ""), body, "image")
        engine = self.server.engine
        return "text/html", self._page(hits=self._hits(engine.nearest([engine.image(data)], self.server.count)),
                                       asked="like the picture that was sent")

    def _hits(self, hits):
        return [(hit.row, self._name(hit.row), hit.score, list(hit.words)) for hit in hits]

    def _name(self, row):
        return command.printable(self.server.engine.folder.files[row].name)

    def _page(self, question="", hits=None, asked="", problem=""):
        engine = self.server.engine
        about = f"{int(engine.index.good.sum()):,} images below {command.printable(engine.folder.root)}"
        return page_lib.page(self.server.title, about, question, hits, asked, problem)


def _number(text, what):
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Refused(f"{what} must be a whole number, not {text[:20]!r}")
    return int(text)


def _part(kind, body, name):
    """The bytes of the part called `name` of a multipart/form-data body.

    Raises:
      Refused: another type, or no such part.
    """
    if not kind.lower().startswith("multipart/form-data"):
        raise Refused("a picture is sent as multipart/form-data, as the form does it")
    head = b"Content-Type: " + kind.encode("latin-1", "replace") + b"\r\n\r\n"
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    for part in message.iter_parts() if message.is_multipart() else ():
        if part.get_param("name", header="content-disposition") == name:
            return part.get_payload(decode=True) or b""
    raise Refused(f"the request has no part called {name!r}")
