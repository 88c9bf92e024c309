"""Where files are: this machine, a web server, or any store that fsspec knows. `files` is the way to use them.

A store has info(url) -> (size, stamp); read(url, offset, size) -> (bytes, the info now, or None where that would take a
request of its own); write(url, bytes), of which nobody ever sees half; and find(pattern) -> sorted list of urls.
"""
import glob
import os
import threading

from mcd_jax.run import atomic

TIMEOUT = 60.0  # seconds without a byte after which an http read counts as failed
_MARKS = ("etag", "ETag", "md5Hash", "generation", "mtime", "updated", "LastModified", "created")


def is_local(url):
    """Whether `url` is a path of this machine ("file://" too)."""
    return "://" not in os.fspath(url) or os.fspath(url).startswith("file://")


def path(url):
    """A local path without "file://" and "~"; any other url as it is."""
    url = os.fspath(url)
    return os.path.expanduser(url.removeprefix("file://")) if is_local(url) else url


def store(url):
    """The store that a url belongs to."""
    if is_local(url):
        return Local
    return Http if url.startswith(("http://", "https://")) else Bucket


class Local:
    """Paths of this machine. Files are opened for each read: that is how a change is noticed, and costs 10 microseconds."""

    @staticmethod
    def info(url):
        stat = os.stat(url)
        if not os.path.isfile(url):
            raise FileNotFoundError(f"{url} is no file")
        return _local(stat)

    @staticmethod
    def read(url, offset, size):
        fd = os.open(url, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, size, offset)
            while 0 < len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
                data += more
            return data, _local(os.fstat(fd))
        finally:
            os.close(fd)

    @staticmethod
    def write(url, data):
        atomic.write_bytes(url, data)

    @staticmethod
    def find(pattern):
        return sorted(filter(os.path.isfile, glob.glob(pattern)))


def _local(stat):
    seconds, rest = divmod(stat.st_mtime_ns, 10 ** 9)
    return stat.st_size, f"{stat.st_size} bytes of {seconds}.{rest:09d}"


class Bucket:
    """What fsspec reaches: gs://, s3://, memory://, ..."""

    @staticmethod
    def info(url):
        system, place = _filesystem(url)
        found = system.info(place)
        if found.get("type") == "directory":
            raise FileNotFoundError(f"{url} is a folder")
        mark = next((str(found[name]).strip('"') for name in _MARKS if found.get(name)), "an unknown time")
        return int(found["size"]), f"{found['size']} bytes of {mark}"

    @staticmethod
    def read(url, offset, size):
        system, place = _filesystem(url)
        return system.cat_file(place, start=offset, end=offset + size), None

    @staticmethod
    def write(url, data):
        system, place = _filesystem(url)
        system.pipe_file(place, data)

    @staticmethod
    def find(pattern):
        system, place = _filesystem(pattern)
        found = system.glob(place, detail=True)
        return sorted(system.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file")


def _filesystem(url):
    import fsspec
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)  # a kept listing would hide that a file changed
    except ImportError as error:
        raise ImportError(f"{url} can't be read: {error}") from error


class Http:
    """http(s) servers that answer byte ranges."""

    _mine = threading.local()

    @classmethod
    def info(cls, url):
        return cls._get(url, 0, 0)[1]

    @classmethod
    def read(cls, url, offset, size):
        return cls._get(url, offset, offset + size - 1)

    @staticmethod
    def write(url, data):
        raise PermissionError(f"{url}: nothing can be written to a web server")

    @staticmethod
    def find(pattern):
        raise ValueError(f"{pattern!r}: web servers can't list files; name them with braces such as {{00000..00331}}")

    @classmethod
    def _get(cls, url, first, last):
        """(bytes, (size of the whole file, stamp)) of a range, both ends inside."""
        import requests
        if getattr(cls._mine, "pid", None) != os.getpid():
            cls._mine.session, cls._mine.pid = requests.Session(), os.getpid()
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        with cls._mine.session.get(url, headers=headers, timeout=TIMEOUT, stream=True) as answer:
            if answer.status_code in (404, 410):
                raise FileNotFoundError(f"{url} is not there (status {answer.status_code})")
            if answer.status_code != 416:
                answer.raise_for_status()
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status_code == 200 and answer.headers.get("Content-Length") == "0":
                total = "0"
            elif answer.status_code not in (206, 416) or not total.isdigit():
                raise OSError(f"{url}: the server doesn't answer byte ranges (status {answer.status_code})")
            mark = answer.headers.get("ETag", "").strip('"') or answer.headers.get("Last-Modified") or "an unknown time"
            data = answer.content if answer.status_code == 206 else b""
            return data, (int(total), f"{total} bytes of {mark}")
