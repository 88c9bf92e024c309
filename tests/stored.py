"""Shards as others write them (tarfile, TFRecord by hand) and a web server with byte ranges, for the tests of files and sources."""
import contextlib
import http.server
import io
import json
import os
import struct
import tarfile
import threading

import cv2
import numpy as np
from tensorboardX import crc32c


def picture(number):
    """A small JPEG or PNG of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.imencode((".jpg", ".png")[number % 2], cv2.resize(pixels, (20, 16)))[1].tobytes()


def row(number):
    """[(name, bytes)] of one example as img2dataset writes it."""
    key = f"{number:09d}"
    about = {"url": "http://127.0.0.1/x.jpg", "key": key, "status": "success", "error_message": None, "width": 20, "height": 16,
             "caption": f"number {number}", "similarity": number / 100, "watermark": None if number % 5 == 0 else 0.25,
             "sha256": "f" * 64, "nsfw": number % 3 == 0}
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps(about, indent=4).encode()),
            (f"{key}.txt", f"number {number}".encode())]


def rows(start, stop):
    return [member for number in range(start, stop) for member in row(number)]


def tar(members, form=tarfile.PAX_FORMAT):
    """The bytes of an archive of (name, bytes) or TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def example(**features):
    """A serialised tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2
    result = tf_example_pb2.Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
        getattr(result.features.feature[name], kind).value.extend(values)
    return result.SerializeToString(deterministic=True)


def example_row(number):
    return example(jpg=picture(number), caption=f"number {number}".encode(), key=f"{number:09d}".encode(), width=20,
                   similarity=number / 100)


def tfrecord(records):
    """The bytes of a TFRecord file; the checksums are tensorboardX's."""
    mask = lambda data: struct.pack("<I", ((crc32c.crc32c(data) >> 15 | crc32c.crc32c(data) << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    heads = [struct.pack("<Q", len(data)) for data in records]
    return b"".join(head + mask(head) + data + mask(data) for head, data in zip(heads, records))


@contextlib.contextmanager
def served(folder):
    """A web server of a folder on 127.0.0.1: yields an object with `url`, `asked` (paths), `fail` (answers that will be 503),
    `ranges` (whether it knows them)."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = os.path.join(folder, os.path.basename(self.path.partition("?")[0]))
            state.asked.append(self.path)
            if state.fail:
                state.fail -= 1
                return self.answer(503)
            if not os.path.isfile(path):
                return self.answer(404)
            with open(path, "rb") as file:
                data = file.read()
            tag = {"ETag": f'"{os.stat(path).st_mtime_ns}"'}
            if not state.ranges:
                return self.answer(200, data, tag)
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            if int(first) >= len(data):
                return self.answer(416, b"", {**tag, "Content-Range": f"bytes */{len(data)}"})
            part = data[int(first):int(last) + 1]
            return self.answer(206, part, {**tag, "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})

        def answer(self, status, data=b"", headers=()):
            self.send_response(status)
            for name, value in {**dict(headers), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()

    class state:
        url, asked, fail, ranges = f"http://127.0.0.1:{server.server_port}", [], 0, True
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def places(folder, name):
    """Yields {store: base url} under which the files of `folder` are found: this machine, memory, a web server."""
    import fsspec
    memory = fsspec.filesystem("memory")
    for file in os.listdir(folder):
        memory.pipe_file(f"/{name}/{file}", (folder / file).read_bytes())
    try:
        with served(folder) as server:
            yield {"local": str(folder), "memory": f"memory://{name}", "http": server.url}
    finally:
        memory.rm(f"/{name}", recursive=True)
