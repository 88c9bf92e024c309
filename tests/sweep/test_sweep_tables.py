"""The tables of a sweep: their order, their figures, and nothing of a run that could become markup."""
import csv
import io

import pytest
from sweeps import MRR, leave, planned

from mcd_jax.report import plots
from mcd_jax.sweep import tables
from tests.report.test_report import HOSTILE, Document


def swept(tmp_path):
    """Runs of two weights by two seeds (one failed), and one under way with the best figure."""
    found = planned(tmp_path, "for r in grid({'objective.weights.clip': [0.0, 5.0], 'seed': [0, 1]}): add(r)\n"
                              "add({'optimizer.lr': 0.1})")
    for run, mrr in zip(found, (0.2, 0.4, 0.1, 0.0, 0.9)):
        leave(run, complete=run is not found[4], mrr=mrr, loss=2 + 2 * mrr)
    states = {run.name: ("finished", "") for run in found}
    states[found[3].name], states[found[4].name] = ("failed", "error: =1+1, \"no\"\nmemory"), ("stopped", "")
    return found, states


def test_the_best_come_first_and_failures_last(tmp_path):
    found, states = swept(tmp_path)
    order = lambda **how: [row["name"] for row in tables.gather(found, states, how.pop("metric", MRR), **how)]
    names = [run.name for run in found]
    assert order() == [names[1], names[0], names[2], names[4], names[3]]
    assert order(minimize=True) == [names[2], names[0], names[1], names[4], names[3]]
    assert order(metric="loss/clip", minimize=True)[:3] == [names[2], names[0], names[1]]
    (found[1].workdir / "evals.json").unlink()
    (found[1].workdir / "metrics.jsonl").unlink()
    assert order()[:3] == [names[0], names[2], names[1]]   # finished without the figure


def test_the_csv_has_a_row_per_run(tmp_path):
    found, states = swept(tmp_path)
    tables.write(found, states, tmp_path / "out", MRR)
    text = (tmp_path / "out" / "sweep.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.partition("\n")[0].count(MRR) == 1   # a column each
    assert list(rows[0])[:10] == ["name", "status", "objective.weights.clip", "seed", "optimizer.lr", MRR, "loss", "step",
                                  "seconds", "error"]
    assert [rows[0][k] for k in list(rows[0])[:9]] == [found[1].name, "finished", "0.0", "1", "0.01", "0.4", "1.4", "24", "13.0"]
    assert rows[0][MRR.replace("MRR", "R@1")] == "0.01" and rows[4]["error"] == 'error: =1+1, "no"\nmemory'
    assert rows[3]["objective.weights.clip"] == "1.0" and rows[3]["step"] == "12"   # the config's, where not overridden


def test_seeds_are_averaged_over_finished_runs(tmp_path):
    found, states = swept(tmp_path)
    means = tables.seeds(tables.gather(found, states, MRR), [MRR, "loss"])
    assert [(g["overrides"]["objective.weights.clip"], g["finished"], g["runs"]) for g in means] == [
        (0.0, 2, 2), (5.0, 1, 2), (1.0, 0, 1)]
    assert means[0]["figures"][MRR] == pytest.approx((0.3, 0.02 ** 0.5)) and means[1]["figures"][MRR] == (0.1, None)
    assert [g["finished"] for g in tables.seeds(tables.gather(found, states, MRR), [MRR], minimize=True)] == [1, 2, 0]
    page = Document(tables.as_html(tables.gather(found, states, MRR), MRR))
    assert "0.300 ± 0.141" in page.text and "2 of 2" in page.text
    alone = planned(tmp_path, "add({'optimizer.lr': 0.1})")
    assert tables.seeds(tables.gather(alone, {alone[0].name: ("new", "")}, MRR), [MRR]) == []


def test_the_page_shows_runs_and_curves_and_loads_nothing(tmp_path):
    found, states = swept(tmp_path)
    rows = tables.gather(found, states, MRR)
    text = tables.as_html(rows, MRR)
    page = Document(text)
    assert {"summary", "runs", "seeds", "swept", "curves"} <= page.ids
    assert page.tags.count("svg") == 4 + 2   # loss, its term, MRR, R@1; the metric over the weight and over the rate
    assert "http:" not in text and "https:" not in text and "script" not in page.tags
    assert all(ref.startswith("#") for ref in page.refs)
    shown = [part for part in page.text if part in states]
    assert shown == [row["name"] for row in rows]
    assert all(piece in page.text for piece in ("0.400", "1.00%", "loss/clip", states[found[3].name][1]))
    assert "chance_R@1" not in text
    paint = tables.colours([{"name": str(i), "series": {"loss": 1} if i else {}} for i in range(9)])
    assert "0" not in paint and len({paint[str(i)] for i in range(1, 7)}) == 6 and paint["7"] == paint["8"] == "#cbd5e1"


def test_a_sweep_that_has_not_begun_has_a_page_too(tmp_path):
    found = planned(tmp_path, "add(seed=1)")
    rows = tables.write(found, {"seed=1": ("not started", "")}, tmp_path / "out", "loss", True)
    assert rows[0]["metric"] is None and "No step has been logged yet." in (tmp_path / "out" / "sweep.html").read_text()


def test_hostile_text_stays_text(tmp_path):
    found, _ = swept(tmp_path)
    found = [run._replace(overrides={"steps": HOSTILE, "seed": 1}, config={**run.config, "steps": HOSTILE}) for run in found]
    for run in found:
        leave(run, complete=True, figures={MRR.replace("MRR", HOSTILE.replace("/", "")): 0.5, MRR.replace("MRR", "odd"): HOSTILE})
    rows = tables.gather([run._replace(name=run.name + HOSTILE) for run in found],
                         {run.name + HOSTILE: (HOSTILE, HOSTILE) for run in found}, MRR)
    text = tables.as_html(rows, MRR, name=HOSTILE)
    page = Document(text)
    assert "script" not in page.tags and "img" not in page.tags and page.events == [] and HOSTILE in "".join(page.text)
    assert all(ref.startswith("#") for ref in page.refs)


def test_the_metric_is_drawn_over_every_key_that_was_swept(tmp_path):
    runs = planned(tmp_path, "for r in grid({'optimizer.lr': [1e-3, 1e-2, 1e-1], 'objective.implementation': ['gather', 'ring'],"
                             " 'seed': [0, 1], 'steps': ['30 steps']}): add(r)")
    for i, run in enumerate(runs):
        leave(run, complete=True, mrr=0.1 + 0.01 * i)
    rows = tables.gather(runs, {run.name: ("finished", "") for run in runs}, MRR)
    lr, source = tables.swept(rows, MRR)   # not the seed, and not what has one value
    assert "0.001" in lr and "MRR" in lr and "best: 0.1" in lr
    assert "gather" in source and "ring" in source
    assert tables.swept([{**row, "metric": None} for row in rows], MRR) == []


def test_a_logarithmic_axis_is_chosen_where_it_is_more_even():
    fits = plots.log_fits
    assert fits([1e-4, 1e-3, 1e-2]) and fits([1, 3, 10, 30]) and fits([0.1, 0.001])
    assert not any(map(fits, (list(range(100, 1001, 100)), [0, 1, 10], [1, 2, 4], [5])))
