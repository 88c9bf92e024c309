"""`mcd-jax search` on a tiny run: the stored index, the answers, and a server that takes hostile requests."""
import http.client
import io
import json
import os
import socket
import threading
import urllib.parse

import numpy as np
from PIL import Image
import pytest
from untrained import untrained

from mcd_jax.command import printable
from mcd_jax.data import pipeline
from mcd_jax.evals import embedder
from mcd_jax.search import __main__ as command
from mcd_jax.search import engine as engine_lib
from mcd_jax.search import folder as folder_lib
from mcd_jax.search import index as index_lib
from mcd_jax.search import page, server
from tests.configs import toy

COLOURS = {"red.png": (255, 0, 0), "deep/green.jpg": (0, 255, 0), "deep/er/blue.webp": (0, 0, 255), "white.bmp": (255, 255, 255)}


def picture(colour, kind="PNG", size=(40, 30)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = untrained(tmp_path_factory.mktemp("search") / "toy", toy.get_config())
    run.job.pipeline.close()
    return run.folder, run.job, run.state


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    for name, colour in COLOURS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(colour, {"jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2].upper())))
    (root / "broken.png").write_bytes(b"<html>not found</html>")
    (root / ".hidden.png").write_bytes(picture((9, 9, 9)))
    (root / "notes.txt").write_text("no image")
    (tmp_path / "secret.png").write_bytes(picture((7, 7, 7)))
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "in.png").symlink_to(root / "red.png")
    return root


def test_a_folder_lists_its_own_images_only(images, tmp_path):
    folder = folder_lib.Folder(images)
    assert [file.name for file in folder.files] == sorted(["broken.png", "in.png", *COLOURS])
    assert folder.outside == 1
    place = [file.name for file in folder.files].index("in.png")
    assert folder[place]["image"] == (images / "red.png").read_bytes() and folder[place]["key"] == "in.png"
    (images / "in.png").unlink()
    (images / "in.png").symlink_to(tmp_path / "secret.png")   # changed after it was listed
    assert folder.read(place) == b""
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        folder_lib.Folder(tmp_path / "none")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="no image"):
        folder_lib.Folder(tmp_path / "bare")


def test_the_index_embeds_what_is_new_and_keeps_the_rest(images, tmp_path):
    asked, path = [], tmp_path / "index.npz"

    def encode(rows):
        names = [folder.files[i].name for i in rows]
        asked.append(names)
        return {"image": np.array([[len(n), folder.files[i].size] for n, i in zip(names, rows)], np.float32),
                "codes": np.array([[len(n)] for n in names], np.uint8)}, np.array([n != "broken.png" for n in names])

    folder = folder_lib.Folder(images)
    first, count = index_lib.refresh(path, "a", folder, encode)
    assert count == 6 and first.image[0].tolist() == [0, 0] and not first.good[0]
    again, count = index_lib.refresh(path, "a", folder, encode)
    assert count == 0 and len(asked) == 1
    np.testing.assert_array_equal(first.image, again.image)
    (images / "red.png").write_bytes(picture((200, 0, 0), size=(50, 50)))
    (images / "white.bmp").unlink()
    (images / "a.png").write_bytes(picture((1, 2, 3)))
    folder = folder_lib.Folder(images)
    new, count = index_lib.refresh(path, "a", folder, encode)
    assert asked[1] == ["a.png", "in.png", "red.png"] and count == 3   # in.png is a link to what changed
    for i, file in enumerate(folder.files):
        expected = [0, 0] if file.name == "broken.png" else [len(file.name), file.size]
        assert new.image[i].tolist() == expected and new.extra["codes"][i] == expected[0]
    (images / "a.png").unlink()
    folder = folder_lib.Folder(images)
    new, count = index_lib.refresh(path, "a", folder, encode)
    assert count == 0 and len(new.image) == 5 and new.good.tolist() == [False, True, True, True, True]
    assert index_lib.refresh(path, "b", folder, encode)[1] == 5           # another network
    path.write_bytes(path.read_bytes()[:100])
    assert index_lib.refresh(path, "b", folder, encode)[1] == 5           # a torn file is made anew


def test_answers_are_the_nearest_embeddings_and_the_command_prints_them(run, images, capsys):
    workdir, made, state = run
    engine = engine_lib.Engine(workdir, folder_lib.Folder(images))
    names = [file.name for file in engine.folder.files]
    assert engine.embedded == 6 and [n for n, good in zip(names, engine.index.good) if not good] == ["broken.png"]
    slow = embedder.make_embed(made.objective, "params", 1)
    views = pipeline.Views({"image": "decode|resize(16)", "text": "caption('first')|tokenize(8, 'emoji')"})   # as its evaluations
    assert engine._views["image"].specs["image"] == views.specs["image"]
    question = slow(state, {"text": next(pipeline.sequential(rows_of("red circle"), engine._views["text"], 1))["text"]})["text"][0]
    expected = {}
    for name, data in ((n, (images / n).read_bytes()) for n in names if n != "broken.png"):
        pixels = next(pipeline.sequential([{"image": data, "text": "", "key": ""}], engine._views["image"], 1))["image"]
        expected[name] = float(slow(state, {"image": pixels})["image"][0] @ question)
    hits = engine.nearest([engine.text("red circle")], 10)
    assert len(hits) == 5
    for hit in hits:
        assert hit.score == pytest.approx(expected[names[hit.row]], abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    red = engine.nearest([engine.image((images / "red.png").read_bytes())], 2)
    assert [names[hit.row] for hit in red] == ["in.png", "red.png"] and red[0].score == pytest.approx(1, abs=1e-5)
    both = engine.nearest([engine.text("red"), engine.member(names.index("red.png"))], 1)[0]
    unit = engine.text("red").unit + engine.index.image[names.index("red.png")]
    assert both.score == pytest.approx(max(engine.index.image[engine.index.good] @ unit / np.linalg.norm(unit)), abs=1e-5)

    command.main([f"--workdir={workdir}", f"--images={images}", "--text=red circle", "--count=2"])
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{hit.score:.3f}  {names[hit.row]}" for hit in hits[:2]]
    assert err.strip() == "6 images, 0 embedded now, 1 can't be read, 1 links lead out of the folder"


def rows_of(text):
    return [{"text": text, "key": ""}]


@pytest.mark.parametrize("flags, sentence", [
    ([], "say what to look for"), (["--text=x", "--count=0"], "--count=0 must be a whole number of at least 1"),
    (["--text=  "], "the question is empty"), (["--text=&nbsp;"], "the question '&nbsp;' is empty once it is cleaned"),
    (["--image=/nowhere.png"], "No such file"),
    (["--text=x", "--images=/nowhere"], "is not a folder"), (["--serve", "--host=0.0.0.0"], "names no address"),
    (["--text=x", "--weights_from=memory/teacher"], "weights_from='memory/teacher'"), (["--text=x", "--step=4"],
                                                                                       "no checkpoint of step 4")])
def test_a_bad_call_gets_a_sentence(run, images, flags, sentence):
    with pytest.raises(SystemExit, match=sentence):
        command.main([f"--workdir={run[0]}", f"--images={images}", *flags])


def test_a_port_that_is_taken_is_named(run, images):
    with socket.socket() as taken, pytest.raises(SystemExit, match=r"--port=[0-9]+ can't be served on .Address already in use"):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command.main([f"--workdir={run[0]}", f"--images={images}", "--serve", f"--port={taken.getsockname()[1]}"])


@pytest.fixture(scope="module")
def service(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    for name in ("red.png", "<b>&amp;.png"):
        (root / name).write_bytes(picture((255, 0, 0) if name == "red.png" else (0, 0, 255), size=(600, 300)))
    (root / os.fsdecode(b"\xff.png")).write_bytes(picture((0, 9, 0)))
    (root / "zbroken.png").write_bytes(b"no")
    engine = engine_lib.Engine(run[0], folder_lib.Folder(root))
    with server.Server(engine) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(service, path, method="GET", body=None, headers=(), host=None):
    connection = http.client.HTTPConnection("127.0.0.1", service.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in (("Host", host or f"127.0.0.1:{service.server_port}"), *headers):
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer, answer.read()


def form(data, name="image"):
    body = (b'--x\r\nContent-Disposition: form-data; name="%b"; filename="../../etc/a.png"\r\nContent-Type: image/png\r\n\r\n' %
            name.encode() + data + b"\r\n--x--\r\n")
    return body, (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", str(len(body))))


def test_the_page_answers_texts_and_pictures(service):
    answer, body = ask(service, "/")
    assert answer.status == 200 and b"3 images below" in body and b"<figure>" not in body
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"] and service.server_address[0] == "127.0.0.1"
    answer, body = ask(service, "/?q=" + urllib.parse.quote("<script>alert(1)</script>"))
    text = body.decode()
    assert answer.status == 200 and text.count("<figure>") == 3
    assert "<script" not in text and "&lt;b&gt;&amp;amp;.png" in text and "\\xff.png" in text
    answer, body = ask(service, "/", "POST", *form(picture((255, 0, 0), size=(600, 300))))
    assert answer.status == 200 and body.index(b"red.png") < body.index(b"amp;.png")
    answer, body = ask(service, "/api/search?q=red&k=2")
    hits = json.loads(body)["hits"]
    assert answer.status == 200 and len(hits) == 2 and hits[0]["score"] >= hits[1]["score"] and set(hits[0]) == {
        "number", "name", "score", "concepts"}
    answer, body = ask(service, f"/thumbnail/{hits[0]['number']}")
    assert answer.headers["Content-Type"] == "image/jpeg" and max(Image.open(io.BytesIO(body)).size) <= server.SIDE


@pytest.mark.parametrize("path, status", [
    ("/../../etc/passwd", 404), ("/thumbnail/../../etc/passwd", 400), ("/thumbnail/%2e%2e", 400), ("/thumbnail/-1", 400),
    ("/thumbnail/99", 404), ("/thumbnail/2", 404), ("/thumbnail/1" + "0" * 30, 400), ("/thumbnail/%C2%B2", 400), ("/?like=99", 400),
    ("/?like=2", 400), ("/?like=x", 400), ("/?q=a&k=0", 400), ("/?q=a&k=1000", 400), ("/?file=/etc/passwd", 400), ("/?q=%ff", 400),
    ("/?q=%20", 400), ("/?q=" + "a" * 2000, 400), ("/?" + "q=a&" * 30, 400), ("/api/search", 400), ("/api/other", 404)])
def test_a_hostile_request_gets_a_sentence(service, path, status):
    answer, body = ask(service, path)
    assert answer.status == status and b"passwd" not in body.replace(b"/etc/passwd", b"") and b"root:" not in body
    if path.startswith("/api/"):
        assert set(json.loads(body)) == {"error"}
    else:
        assert b'class="wrong"' in body
    assert ask(service, "/")[0].status == 200


def test_uploads_and_hosts_that_do_not_fit_are_refused(service, monkeypatch):
    def post(body, headers):
        return ask(service, "/", "POST", body, headers)[0].status
    assert post(*form(b"no image")) == 400 and post(*form(picture((1, 1, 1)), "other")) == 400
    assert post(b"x=1", (("Content-Type", "application/x-www-form-urlencoded"), ("Content-Length", "3"))) == 400
    assert post(b"", (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", str(10 ** 12)))) == 413
    assert post(b"", (("Content-Type", "multipart/form-data; boundary=x"),)) == 411
    assert post(b"", (("Content-Type", "multipart/form-data"), ("Content-Length", "-5"))) == 411
    torn = form(picture((1, 1, 1)))[0][:-40]
    assert post(torn, (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", str(len(torn))))) == 400
    monkeypatch.setattr(server.Handler, "timeout", 0.2)   # a request shorter than it says is dropped, and the server goes on
    with pytest.raises((http.client.HTTPException, OSError)):
        post(*form(b"x")[:1], (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", "9999")))
    assert ask(service, "/", host="evil.example")[0].status == 421 and ask(service, "/", host="localhost:1")[0].status == 421
    assert ask(service, "/", "PUT")[0].status == 501
    assert ask(service, "/")[0].status == 200


def test_links_and_names_are_written_safely():
    assert page.link(q="a&b", like=3) == "/?q=a%26b&like=3" and printable(os.fsdecode(b"a\xff")) == "a\\xff"
