"""Images with their captions beside them (.txt, .caption, .json; nested, failed rows), and the hold-out of any source."""
import itertools
import os

import own_data
import pytest

from mcd_jax.data import order, sources
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources import hold_out
from mcd_jax.data.tools import pack


def test_captions_beside_images(tmp_path):
    for name in ("b/1.jpg", "a/2.PNG", "a/3.webp", "a/4.jpg", ".hidden/6.jpg", "_tmp/7.jpg", "8.jpg", "9.jpg", "10.jpg", "11.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(own_data.picture(1))
    for name, data in {"b/1.txt": b"one", "b/1.json": b'{"caption": "not this", "width": 7}',
                       "a/2.json": b'{"caption": ["two", "deux"]}', "a/3.caption": b"three", "5.txt": b"no image",
                       "8.json": b'{"text": "eight"}', "9.json": b"{",
                       "10.json": b'{"caption": "x", "status": "failed_to_download"}', "11.txt": b"",
                       "11.json": b'{"caption": null}', "s_stats.json": b"{}"}.items():
        (tmp_path / name).write_bytes(data)
    source = sources.open({"name": "sidecars", "path": str(tmp_path)})
    assert [(row["key"], row["text"]) for row in source] == [
        ("8", "eight"), ("a/2", ["two", "deux"]), ("a/3", b"three"), ("b/1", b"one")]
    assert source[3]["width"] == 7 and source[3]["caption"] == "not this" and source.keys() == ["8", "a/2", "a/3", "b/1"]
    assert source[3]["image"] == own_data.picture(1)
    assert source.left_out == {"no image": 1, "no caption": 3, "broken json": 1, "failed (failed_to_download)": 1}
    fields = sources.open({"name": "sidecars", "path": str(tmp_path), "columns": {"text": "caption"}})
    assert [row["text"] for row in fields] == [["two", "deux"], b"three", "not this"]
    wide = sources.open({"name": "sidecars", "path": str(tmp_path), "where": {"width": {"min": 5}}})
    assert wide.keys() == ["b/1"]
    (tmp_path / "b/1.txt").write_text("one\nuno\n")
    assert sources.open({"name": "sidecars", "path": str(tmp_path), "caption_lines": True})[3]["text"] == [b"one", b"uno"]
    (tmp_path / "b/1.json").write_text("{}")
    (tmp_path / "b/1.txt").unlink()
    with pytest.raises((Bad, OSError)):
        source[3]


@pytest.mark.parametrize("change, message", [
    ({"path": "{}/gone"}, "is not a folder"), ({"text": "txt"}, "has no key 'text'"),
    ({"columns": {"image": "jpg"}}, "image .* is its file"),
    ({"columns": {"text": "title"}}, "none of its 3 images has a caption"), ({"where": {"width": 3}}, "no row of the .json files"),
    ({"where": {"size": 3}}, "has no column 'size'")])
def test_sidecars_that_do_not_fit(change, message, tmp_path):
    own_data.json_sidecars(tmp_path / "x", 3)
    spec = {"name": "sidecars", "path": str(tmp_path / "x"), **change}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.open({**spec, "path": spec["path"].format(tmp_path)})


@pytest.mark.parametrize("kind", ["sidecars", "image_folder"])
def test_pipes_and_links_to_nothing_are_left_out(tmp_path, kind):
    own_data.sidecars(tmp_path / "x" / "a", 4)   # a read of a pipe would wait for ever
    names = [path for path in ("5.jpg", "5.txt", "6.jpg") if kind == "sidecars" or path.endswith("jpg")]
    os.mkfifo(tmp_path / "x/a" / names[-2])
    (tmp_path / "x/a" / names[-1]).symlink_to("gone.jpg")
    for name in {"5.jpg", "6.txt"} - {*names[-2:]}:
        (tmp_path / "x/a" / name).write_bytes(own_data.picture(0) if name.endswith("jpg") else b"x")
    (tmp_path / "x/a/7.jpg").symlink_to(sorted(path.name for path in (tmp_path / "x/a").glob("*.jpg"))[0])
    (tmp_path / "x/a/7.txt").write_text("a link to a file")
    source = sources.open({"name": kind, "path": str(tmp_path / "x")})
    assert len([row["image"] for row in source]) == len(source) == 5
    assert source.left_out["not a file (a pipe, or a link to nothing)"] == 2


def test_links_out_of_the_folder_are_refused(tmp_path):
    own_data.sidecars(tmp_path / "x", 2)
    (tmp_path / "secret.jpg").write_bytes(own_data.picture(0))
    for name in ("9.jpg", "9.txt"):
        link = tmp_path / "x" / name
        link.symlink_to(tmp_path / "secret.jpg")
        with pytest.raises(ValueError, match=rf"{name} is a link to .*secret.jpg, outside"):
            sources.open({"name": "sidecars", "path": str(tmp_path / "x")})
        link.unlink()
        (tmp_path / "x/9.jpg").write_bytes(own_data.picture(0))


# ---- held out ----


def split(spec, share=0.3):
    return [sources.open({"name": "hold_out", "source": spec, "part": part, "share": share}) for part in hold_out.PARTS]


@pytest.mark.parametrize("name", ["tars", "tfrecords", "parquet", "files", "csv_table", "karpathy", "class_folders"])
def test_parts_are_disjoint_and_whole(name, tmp_path):
    from mcd_jax.data.detect.detect import detect
    own_data.MAKERS[name](tmp_path / "mine")
    spec = detect(tmp_path / "mine").spec
    whole = sources.open(spec)
    pictures = [{row["image"] for row in part} for part in split(spec)]
    assert not pictures[0] & pictures[1] and pictures[0] | pictures[1] == {row["image"] for row in whole}
    assert len(pictures[0]) + len(pictures[1]) == len(whole) and 0.1 < len(pictures[1]) / len(whole) < 0.5
    if name == "class_folders":
        train = split(spec)[0]
        assert train.classes == whole.classes and train.column("label") == [row["label"] for row in train]


@pytest.mark.parametrize("name", ["tars", "same_names", "tfrecords", "hugging_face", "files", "csv_table", "class_folders"])
def test_the_same_examples_are_held_out_of_what_is_packed(name, tmp_path):
    import stored

    from mcd_jax.data.detect.detect import detect
    if name == "same_names":   # of two shards
        (tmp_path / "mine").mkdir()
        for shard in range(2):
            (tmp_path / f"mine/{shard}.tar").write_bytes(stored.tar([member for number in range(20) for member in (
                (f"{number}.jpg", own_data.picture(number)), (f"{number}.txt", f"{shard}, {number}".encode()))]))
    else:
        own_data.MAKERS[name](tmp_path / "mine")
    spec = detect(tmp_path / "mine").spec
    pack.pack(spec, tmp_path / "packed", say=lambda line: None)
    packed = detect(tmp_path / "packed").spec
    here, there = ([(row["key"], row["image"]) for row in sources.open(one)] for one in (spec, packed))
    assert [image for _, image in here] == [image for _, image in there]   # these small JPEGs are kept as they are
    held, again = ([row["image"] for row in split(one)[1]] for one in (spec, packed))
    assert held == again and 0 < len(held) < len(here)
    if name == "tfrecords":
        assert [row["source_key"] for row in sources.open(packed)] == [key.encode() for key, _ in here]


def test_the_rule_depends_on_the_key_alone(tmp_path):
    assert hold_out.place("000000012") == pytest.approx(0.59905, abs=1e-5) and hold_out.place("\ud800") < 1   # the same for ever
    assert [key for key in map(str, range(40)) if hold_out.place(key) < 0.1] == RULE
    own_data.sidecars(tmp_path / "x", 20)
    spec = {"name": "sidecars", "path": str(tmp_path / "x")}
    before = [{row["key"] for row in part} for part in split(spec)]
    own_data.sidecars(tmp_path / "x/more", 5)
    after = [{row["key"] for row in part} for part in split(spec)]
    assert before[0] < after[0] and before[1] < after[1]
    few, many = ({row["key"] for row in split(spec, share)[1]} for share in (0.2, 0.5))
    assert few < many


RULE = ["18", "29"]   # of the keys 0 to 39, those below a tenth


def test_two_shards_with_the_same_keys_are_told_apart(tmp_path):
    import stored
    for shard in "ab":
        (tmp_path / f"{shard}.tar").write_bytes(stored.tar([member for number in range(4) for member in (
            (f"{number}.jpg", own_data.picture(number + 10 * (shard == "b"))), (f"{number}.txt", b"x"))]))
    source = sources.open({"name": "webdataset", "path": f"{tmp_path}/*.tar"})
    assert source.keys()[0] == "a.tar/0" and len(set(source.keys())) == 8
    assert sources.open({"name": "webdataset", "path": f"{tmp_path}/a.tar"}).keys() == ["0", "1", "2", "3"]


def test_shards_in_a_folder_that_cannot_be_written_are_read_through_once(tmp_path, monkeypatch):
    from mcd_jax.data.storage import files, index
    own_data.tars(tmp_path)
    built, build = [], index.build
    monkeypatch.setattr(index, "build", lambda *args: built.append(args) or build(*args))

    def refused(*_):
        raise PermissionError("read-only")
    monkeypatch.setattr(files, "write", refused)
    parts = split({"name": "webdataset", "path": f"{tmp_path}/*.tar"})
    assert len(built) == 2 and sum(map(len, parts)) == 38


def test_row_groups_stay_together_in_a_part(tmp_path):
    own_data.parquet(tmp_path)
    spec = {"name": "parquet", "path": f"{tmp_path}/*.parquet", "where": {"status": "success"}, "read": [], "shuffle_groups": 1}
    train, held_out = split(spec)
    assert train.examples == len(train) and sorted(train.draw(0, 0, place) for place in range(len(train))) == [*range(len(train))]
    drawn = [train[train.draw(0, 1, place)]["key"] < "000000020" for place in range(len(train))]
    assert sum(a != b for a, b in itertools.pairwise(drawn)) == 1   # one group after the other
    assert not set(train.keys()) & set(held_out.keys()) and train.keys() == [row["key"] for row in train]


@pytest.mark.parametrize("change, message", [
    ({"part": "test"}, "part='test' must be 'train' or 'held_out'"), ({"share": 1}, "between 0 and 1"),
    ({"share": 1e-9}, "of 3 examples none would be held out; raise it"), ({"seed": 1}, "no key 'seed'"),
    ({"part": "train", "share": 1 - 1e-9}, "of 3 examples all would be held out; lower it"),
    ({"columns": {"text": "x"}}, "the hold_out source has none"), ({"source": "mixture"}, "order of its own")])
def test_hold_outs_that_do_not_fit(change, message, tmp_path):
    own_data.sidecars(tmp_path / "x", 3)
    inner = {"name": "sidecars", "path": str(tmp_path / "x")}
    spec = {"name": "hold_out", "source": inner, "part": "held_out", "share": 0.5, **change}
    if change.get("source"):
        spec["source"] = {"name": "mixture", "sources": {"a": inner}}
    with pytest.raises(ValueError, match=message):
        sources.open(spec)


def test_order_of_a_part_is_its_own(tmp_path):
    own_data.sidecars(tmp_path / "x", 20)
    train, _ = split({"name": "sidecars", "path": str(tmp_path / "x")})
    assert order.size(train) == len(train) and train[-1]["key"] == train[len(train) - 1]["key"]
    assert sorted(row["key"] for row in train) == sorted(train[order.draw(train, 0, n)]["key"] for n in range(len(train)))
