"""Readers of published retrieval benchmarks, on small files of exactly their formats; field names from the publishing repositories.

M-BEIR   TIGER-AI-Lab/UniIR: src/data/mbeir_dataset.py at 1017242 reads query_txt, query_img_path, query_modality, qid of queries
         and did, txt, img_path, modality of candidates (both also hold *src_content), instructions by columns 3, 0, 1 and 4 on;
         src/common/mbeir_retriever.py at 1104db5 (load_qrel) "query_id _ doc_id relevance_score task_id"; file names from there and
         from .../large/eval/inbatch/{embed,retrieval}.yaml at 669475c, 50371cc; src/data/preprocessing/utils.py at 669475c
MMEB     TIGER-AI-Lab/VLM2Vec: src/data/eval_dataset/image_{t2i,i2t}_eval.py, image_i2i_vg_dataset.py at 1e402c4 read qry_inst,
         qry_text, qry_img_path, tgt_inst, tgt_text, tgt_img_path; the first candidate is the label
CoVR     lucas-ventura/CoVR: src/data/webvid_covr.py at c044445 reads pth1, pth2, edit, scores; frames: src/data/embs.py at 4de798b,
         get_middle_frame and pre_caption: src/data/utils.py at c044445; ranking: src/test/blip/webvid_covr.py at adf5682
"""
import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcd_jax.evals import benchmarks, universal
from mcd_jax.evals.benchmarks import MISSING, Entry, covr, mbeir
from tests import universal_toy as toy
from tests.evals.test_universal import VIEWS, oracle, unit


def put(path, data):
    """Writes bytes, text, or JSON lines, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else "".join(json.dumps(row) + "\n" for row in data))


# ---- M-BEIR --------------------------------------------------------------------------------------------------------------------


def candidate(did, number, modality, word="other"):
    image = f"mbeir_images/cocos/{number}.jpg" if "image" in modality else None
    return {"txt": f"{word}{number}" if "text" in modality else None, "img_path": image, "modality": modality, "did": did,
            "src_content": None}


def query(qid, number, modality, positive):
    image = f"mbeir_images/cocos/{number}.jpg" if "image" in modality else None
    return {"qid": qid, "query_txt": f"word{number}" if "text" in modality else None, "query_img_path": image,
            "query_modality": modality, "query_src_content": None, "pos_cand_list": positive, "neg_cand_list": []}


INSTRUCTIONS = """query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4
text\timage\tMSCOCO\t9\tFind the picture\tShow it.\t\t
image,text\timage\tCIRR\t8\tChange it so\tApply:\tAs said:\tGo
image\ttext\tMSCOCO\t9\tDescribe this.\tSay what it is\tWhat is it?\tA caption for
"""


@pytest.fixture
def root(tmp_path):
    """Three tasks of M-BEIR; image 3 is missing."""
    for number in (0, 1, 2, 4, 5):
        put(tmp_path / f"mbeir_images/cocos/{number}.jpg", toy.png(number))
    put(tmp_path / "instructions/query_instructions.tsv", INSTRUCTIONS)
    images = [candidate(f"9:{i + 1}", i, "image") for i in range(5)]
    texts = [candidate(f"9:{i + 11}", i, "text") for i in range(5)]
    cirr = [candidate(f"8:{i - 3}", i, "image") for i in (4, 5)]
    put(tmp_path / "cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl", images)
    put(tmp_path / "cand_pool/local/mbeir_mscoco_task3_test_cand_pool.jsonl", texts)
    put(tmp_path / "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl", cirr)
    put(tmp_path / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", [*images, *texts, *cirr, candidate("2:1", 1, "image,text")])
    put(tmp_path / "query/test/mbeir_mscoco_task0_test.jsonl", [query(f"9:{i}", i, "text", [f"9:{i + 1}"]) for i in range(5)])
    put(tmp_path / "query/test/mbeir_mscoco_task3_test.jsonl", [query(f"9:{i + 7}", i, "image", [f"9:{i + 11}"])
                                                                for i in (0, 1, 3)])
    put(tmp_path / "query/test/mbeir_cirr_task7_test.jsonl", [query("8:1", 4, "image,text", ["8:1"])])
    put(tmp_path / "qrels/test/mbeir_mscoco_task0_test_qrels.txt", "".join(
        f"9:{i} 0 9:{i + 1} 1 0\n9:{i} 0 9:{(i + 1) % 5 + 1} 0 0\n" for i in range(5)))
    put(tmp_path / "qrels/test/mbeir_mscoco_task3_test_qrels.txt", "".join(f"9:{i + 7} 0 9:{i + 11} 2 3\n" for i in (0, 1, 3)))
    put(tmp_path / "qrels/test/mbeir_cirr_task7_test_qrels.txt", "8:1 0 8:1 1 7\n8:1 0 8:2 1 7\n")
    return tmp_path


TASKS = ("mscoco_task0", "mscoco_task3", "cirr_task7")


def test_universal_mbeir_records(root):
    found = benchmarks.open(dict(name="mbeir", path=root, tasks=TASKS))
    assert [task.name for task in found.tasks] == list(TASKS) and found.missing == 1 and len(found.candidates) == 13
    images, texts, cirr = found.tasks
    assert images.queries[2] == Entry("9:2", "text", (), "Word2.")            # as UniIR's format_string writes it
    assert images.relevant == [(f"9:{i + 1}",) for i in range(5)]             # relevance 0 is none
    assert images.local == [f"9:{i + 1}" for i in range(5)] and cirr.local == ["8:1", "8:2"]
    known = {entry.id: entry for entry in found.candidates}
    assert known["9:4"].images == (MISSING,) and known["2:1"].modality == "fused" and known["2:1"].text == "Other1."
    assert known["9:1"].images == texts.queries[0].images and known["8:1"].images == cirr.queries[0].images   # a file is one row
    assert cirr.queries[0].modality == "fused" and cirr.relevant == [("8:1", "8:2")]
    assert found.images[known["9:2"].images[0]]["image"] == toy.png(1)
    assert found.averages == {"local": {"R@5|10": {"mscoco_task0": 5, "mscoco_task3": 5, "cirr_task7": 5}}}


def test_universal_mbeir_instructions_stand_before_the_query(root):
    found = benchmarks.open(dict(name="mbeir", path=root, tasks=TASKS, union=False, instructions=True))
    images, texts, cirr = found.tasks
    assert [q.text for q in images.queries[:3]] == ["Find the picture. word0.", "Show it. word1.", "Find the picture. word2."]
    assert texts.queries[1] == Entry("9:8", "image", texts.queries[1].images, "Say what it is.")   # still an image's query
    assert cirr.queries[0].text == "Change it so. word4." and len(found.candidates) == 12


def test_universal_mbeir_through_the_evaluation(root):
    """An exact model with a gap between modalities: all is found in the local pools; image 3 neither asks nor answers."""
    settings = dict(benchmark=dict(name="mbeir", path=root, tasks=TASKS), views=VIEWS, ks=(1, 5, 10), search="exact")
    found = universal.make(settings, "x")(oracle, None)
    assert found["missing"] == 1 and "bad" not in found
    assert found["local/mscoco_task0/text_to_image/R@1"] == 1 and found["local/mscoco_task0/text_to_image/queries"] == 4
    assert found["local/mscoco_task0/text_to_image/candidates"] == 4 and found["global/mscoco_task0/text_to_image/candidates"] == 12
    assert found["global/mscoco_task0/text_to_image/R@5"] == 0      # five texts are nearer than the image
    assert found["local/mscoco_task3/image_to_text/queries"] == 2 and found["local/mscoco_task3/image_to_text/R@1"] == 1
    assert found["local/cirr_task7/fused_to_image/chance_R@1"] == 1                          # both of its candidates are right
    assert found["local/mean/R@1"] == 1 and found["local/mean/R@5|10"] == 1 and "global/mean/R@5|10" not in found


@pytest.mark.parametrize("file, text, message", [
    ("qrels/test/mbeir_cirr_task7_test_qrels.txt", "8:1 0 8:1 1\n", "line 1 is not 'qid 0 did relevance task'"),
    ("qrels/test/mbeir_cirr_task7_test_qrels.txt", "8:2 0 8:1 1 7\n", "8:1: the qrels have no relevant candidate for it"),
    ("qrels/test/mbeir_cirr_task7_test_qrels.txt", "8:1 0 8:1 0 7\n", "8:1: the qrels have no relevant candidate for it"),
    ("qrels/test/mbeir_cirr_task7_test_qrels.txt", "8:1 0 8:99 1 7\n", "1 of 1 queries have no relevant candidate in the pool"),
    ("query/test/mbeir_cirr_task7_test.jsonl", "{\"qid\": \"8:1\"\n", "test.jsonl, line 1 is not JSON"),
    ("query/test/mbeir_cirr_task7_test.jsonl", "{\"qid\": \"8:1\"}\n", "line 1 has no query_modality"),
    ("cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl", '{"did": "8:1", "modality": "video"}', "modality 'video' is none of"),
    ("cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl", json.dumps(candidate("8:1", "../../../x", "image")), "leads out of"),
    ("cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl", json.dumps(dict(candidate("8:1", 1, "image"), img_path="/etc/passwd")),
     "is no path below"),
    ("cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl", json.dumps(dict(candidate("8:1", 1, "image"), img_path="link/x.jpg")),
     "leads out of"),
    ("cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl", json.dumps(dict(candidate("8:1", 1, "image"), img_path="file.jpg")),
     "leads out of"),
    ("instructions/query_instructions.tsv", "x\ntext\timage\tMSCOCO\n", "query_instructions.tsv, line 2 is not")])
def test_universal_mbeir_refuses_what_it_cannot_trust(root, tmp_path_factory, file, text, message):
    outside = tmp_path_factory.mktemp("outside")
    put(outside / "x.jpg", toy.png(1))
    (root / "link").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "x.jpg")
    put(root / file, text)
    with pytest.raises(ValueError, match=message):
        benchmarks.open(dict(name="mbeir", path=root, tasks=("cirr_task7",), union=False, instructions=True))


def test_universal_mbeir_refuses_missing_files(root):
    with pytest.raises(FileNotFoundError, match=r"no file .*mbeir_nights_task4_cand_pool\.jsonl"):
        benchmarks.open(dict(name="mbeir", path=root, tasks=("nights_task4",)))
    with pytest.raises(ValueError, match="'coco' is none of visualnews_task0"):
        benchmarks.open(dict(name="mbeir", path=root, tasks=("coco",)))
    (root / "mbeir_images").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"none of the 6 images, such as mbeir_images/cocos/0\.jpg, is in"):
        benchmarks.open(dict(name="mbeir", path=root, tasks=TASKS))


@pytest.mark.parametrize("text, want", [("a dog", "A dog."), (' "who is it?" ', "Who is it?"), (None, ""), ("x\r", "X."),
                                        ("Done!", "Done!"), ('""', "")])
def test_universal_mbeir_texts_are_written_as_published(text, want):
    assert mbeir.written(text) == want


# ---- MMEB ----------------------------------------------------------------------------------------------------------------------


def parquet(folder, subset, rows):
    (folder / subset).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / subset / "test-00000-of-00001.parquet")


@pytest.fixture
def mmeb(tmp_path):
    for number in range(5):
        put(tmp_path / f"images/set/{number}.png", toy.png(number))
    base = dict(qry_inst="<|image_1|> Find it", qry_text="", qry_img_path="", tgt_inst="<|image_1|> Represent.")
    parquet(tmp_path, "MSCOCO_i2t", [dict(base, qry_img_path=f"set/{i}.png", tgt_text=[f"other{(i + j) % 5}" for j in range(4)],
                                          tgt_img_path=[""] * 4) for i in range(5)])
    parquet(tmp_path, "MSCOCO_t2i", [dict(base, qry_inst="Find me", qry_text=f"word{i}", tgt_text=[""] * 3,
                                          tgt_img_path=[f"set/{(i + j) % 5}.png" for j in range(3)]) for i in range(5)])
    parquet(tmp_path, "CIRR", [dict(base, qry_text="word1", qry_img_path="set/1.png", tgt_text=["", "", "", "other3"],
                                    tgt_img_path=["set/1.png", "set/2.png", "set/1.png", "set/9.png"])])
    return tmp_path


def test_universal_mmeb_records(mmeb):
    found = benchmarks.open(dict(name="mmeb", path=mmeb, subset="CIRR", images=mmeb / "images"))
    task = found.tasks[0]
    assert len(task.queries) == 1 and (task.queries[0].modality, task.queries[0].text) == ("fused", "word1")
    assert task.relevant == [["0"]] and task.pools == [["0", "1", "2"]] and found.missing == 1   # the first and third are the same
    assert [(e.modality, e.text) for e in found.candidates] == [("image", ""), ("image", ""), ("fused", "other3")]
    assert found.candidates[0].images == task.queries[0].images and found.candidates[2].images == (MISSING,)
    told = benchmarks.open(dict(name="mmeb", path=mmeb, subset="CIRR", images=mmeb / "images", instructions=True))
    assert told.tasks[0].queries[0].text == "Find it word1" and told.candidates[0].text == "Represent."
    plain, told = (benchmarks.open(dict(name="mmeb", path=mmeb, subset="MSCOCO_i2t", images=mmeb / "images", instructions=on))
                   for on in (False, True))
    assert plain.tasks[0].queries[0].modality == "image" and told.tasks[0].queries[0].text == "Find it"
    assert told.candidates == plain.candidates == [Entry(str(i), "text", (), f"other{i}") for i in range(5)]
    assert plain.tasks[0].pools[2] == ["2", "3", "4", "0"] and plain.tasks[0].relevant[2] == ["2"]


@pytest.mark.parametrize("subset", ["MSCOCO_i2t", "MSCOCO_t2i"])
def test_universal_mmeb_through_the_evaluation(mmeb, subset):
    settings = dict(benchmark=dict(name="mmeb", path=mmeb, subset=subset, images=mmeb / "images"), views=VIEWS, ks=(1,))
    run, group = universal.make(settings, "x"), {"i": "image_to_text", "t": "text_to_image"}[subset[7]]
    size = {"i": 4, "t": 3}[subset[7]]
    assert run(oracle, None) == {f"local/{group}/R@1": 1, f"local/{group}/chance_R@1": pytest.approx(1 / size),
                                 f"local/{group}/queries": 5, f"local/{group}/candidates": size}
    for value in (1.0, np.nan):   # the right candidate stands first in every list: that must not help a broken model
        broken = lambda state, batch, value=value: {key: np.full_like(row, value) for key, row in oracle(state, batch).items()}
        assert run(broken, None)[f"local/{group}/R@1"] == 0


def test_universal_mmeb_refuses_what_it_cannot_read(mmeb):
    with pytest.raises(FileNotFoundError, match=r"no file fits .*OVEN/test-"):
        benchmarks.open(dict(name="mmeb", path=mmeb, subset="OVEN", images=mmeb / "images"))
    parquet(mmeb, "wrong", [dict(text="x")])
    with pytest.raises(ValueError, match="has no column qry_text, tgt_text; it has text"):
        benchmarks.open(dict(name="mmeb", path=mmeb, subset="wrong", images=mmeb / "images"))
    row = dict(qry_text="x", qry_img_path="", tgt_text=["a", "b"], tgt_img_path=["set/1.png"])
    parquet(mmeb, "uneven", [row])
    with pytest.raises(ValueError, match="row 0 has 2 tgt_text and 1 tgt_img_path"):
        benchmarks.open(dict(name="mmeb", path=mmeb, subset="uneven", images=mmeb / "images"))
    parquet(mmeb, "escape", [dict(row, tgt_img_path=["set/1.png", "../CIRR/x.png"])])
    with pytest.raises(ValueError, match=r"row 0: '\.\./CIRR/x.png' leads out of"):
        benchmarks.open(dict(name="mmeb", path=mmeb, subset="escape", images=mmeb / "images"))


# ---- CoVR ----------------------------------------------------------------------------------------------------------------------


HEADER = ("txt1", "txt2", "pth1", "pth2", "edit", "scores")


def videos(root, frames, rows):
    """frames: {video: list of numbers that its frames show}; rows: (pth1, pth2, edit) of the csv file."""
    for name, numbers in frames.items():
        for place, number in enumerate(numbers):
            put(root / name / f"frame{place + 1}.png", toy.png(number))     # frame10 comes after frame9
    with open(root / "test.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *(("a", "b", one, two, edit, "[0.1, 0.2]") for one, two, edit in rows)])
    return dict(name="covr", path=root, table="test.csv")


def slow_frames(count):
    """Middles of 15 equal intervals whose ends are rounded down."""
    parts = min(15, count)
    return [(part * count // parts + (part + 1) * count // parts - 1) // 2 for part in range(parts)]


@pytest.mark.parametrize("count", [1, 2, 7, 14, 15, 16, 44, 45, 100, 301])
def test_universal_covr_frames_are_the_middles_of_fifteen_parts(count):
    assert covr.sampled(count) == slow_frames(count) and len(covr.sampled(count)) == min(15, count)
    assert covr.sampled(45) == list(range(1, 45, 3))


def test_universal_covr_records(tmp_path):
    spec = videos(tmp_path, {"01/11": [0, 1, 2, 3], "01/22": [4] * 10 + [5] * 20, "01/33": [1]},
                  [("01/11", "01/22", 'Make it "RED" (now), please!'), ("01/44", "01/33", "x")])
    put(tmp_path / "01/44.jpg", toy.png(2))     # one image file is a video of one frame
    found = benchmarks.open(spec)
    shown = lambda entry: [found.images[row]["key"].rsplit("/", 1)[-1] for row in entry.images]
    first, second = found.tasks[0].queries
    assert shown(first) == ["frame3.png"] and first.modality == "fused" and shown(second) == ["44.jpg"]   # 4 // 2, counted from 0
    assert first.text == "make it red now , please"
    assert shown(found.candidates[0]) == [f"frame{2 * i + 1}.png" for i in range(15)]
    assert [task.name for task in found.tasks] == ["", "ss"] and found.tasks[0].relevant == [("01/22",), ("01/33",)]
    assert found.tasks[0].excluded == [("01/11",), ("01/44",)] and found.tasks[1].excluded is None
    assert covr.cleaned(" ".join(["Word"] * 40)) == " ".join(["word"] * 30)
    assert benchmarks.open({**spec, "clean": False}).tasks[0].queries[0].text == 'Make it "RED" (now), please!'


def test_universal_covr_through_the_evaluation(tmp_path):
    """Each query is nearest to its own reference, the target of another row: it is out of the way first, and in the way in "ss"."""
    spec = videos(tmp_path, {"a": [0, 0, 0], "b": [1, 1, 1], "c": [2, 2]},
                  [("a", "b", "word1"), ("c", "a", "word0"), ("gone", "c", "word2")])
    x = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)

    def embed(state, batch):
        if "image" in batch:
            return {"image": x[toy.seen(batch["image"])], "image_raw": 9 * x[toy.seen(batch["image"])]}
        return {"text": x[toy.read(batch["text"])], "text_raw": x[toy.read(batch["text"])]}

    found = universal.make(dict(benchmark=spec, views=VIEWS, ks=(1, 2), search="exact"), "x")(embed, None)
    fused = unit(9 * x[0] + x[1])
    assert fused @ x[0] > fused @ x[1] > fused @ x[2]
    assert found["local/fused_to_image/R@1"] == 1 and found["local/ss/fused_to_image/R@1"] == 0   # row 1's own reference
    assert found["local/ss/fused_to_image/R@2"] == 1 and found["missing"] == 1 and found["local/fused_to_image/queries"] == 2
    assert not any("mean" in key or key.startswith("global") for key in found)


def test_universal_covr_refuses_what_it_cannot_read(tmp_path):
    twice, outside = [("a", "b", "x"), ("c", "b", "y")], [("../a", "b", "x")]
    for rows, message in ((twice, "1 target videos come twice"), (outside, "leads out of")):
        with pytest.raises(ValueError, match=message):
            benchmarks.open(videos(tmp_path, {"a": [1], "b": [1]}, rows))
    put(tmp_path / "test.csv", "pth1,pth2\na,b\n")
    with pytest.raises(ValueError, match="has no column edit"):
        benchmarks.open(dict(name="covr", path=tmp_path, table="test.csv"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        benchmarks.open(dict(name="covr", path=tmp_path, table="none.csv"))
    with pytest.raises(FileNotFoundError, match="none of the 2 images, such as gone, is in"):
        benchmarks.open(videos(tmp_path, {}, [("gone", "lost", "x")]))


def test_universal_files_that_vanish_are_counted_as_bad(tmp_path):
    files = benchmarks.Files(tmp_path)
    put(tmp_path / "a.png", toy.png(0))
    put(tmp_path / "b.png", toy.png(1))
    assert [files.add(name, "x") for name in ("a.png", "b.png", "a.png", "c.png")] == [0, 1, 0, MISSING] and len(files) == 2
    os.remove(tmp_path / "b.png")
    with pytest.raises(benchmarks.Bad, match=r"missing image: b\.png"):
        files[1]
