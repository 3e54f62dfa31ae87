"""The benchmark gives known detectors known scores, chooses before it tests, and reads each file once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.bench_stand_ins import known, squares
from terralapse import registry
from terralapse.data import folders
from terralapse.engine import bench_models
from terralapse.engine.bench import BenchSettings, run_bench
from terralapse.engine.bench_log import Ledger, RunLog, faults
from terralapse.engine.bench_models import Contender, contenders, measure, together
from terralapse.engine.runner import weights_digest
from terralapse.errors import ModelInputError, SettingError, UnreadableFileError
from terralapse.labels import BINARY_CHANGE, SECOND_MAMBA, SECOND_SCANNET
from terralapse.tasks.metrics import binary_scores
from terralapse.tasks.robustness import PERTURBATIONS

__all__ = ["known"]  # a fixture
MODELS = ("known/level", "known/rise", "known/never")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    squares(tmp_path / "data", "test")
    squares(tmp_path / "data", "val", 2)
    return tmp_path / "data"


def bench(root: Path, models: tuple[str, ...] = MODELS, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """The result and the lines of the log."""
    log = RunLog(root.parent / "log.jsonl")
    log.path.unlink(missing_ok=True)
    settings = {"data": "levir-cd", "root": root, "models": models, "samples": 200, **options}
    result = run_bench(BenchSettings(**settings), log, ledger=Ledger(root.parent / "ledger.jsonl"))
    log.add("finished")
    return result, [json.loads(line) for line in log.path.read_text().splitlines()]


def of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in result["models"] if m["name"] == name)


def fall(model: dict[str, Any], slug: str) -> dict[str, Any]:
    return next(r for r in model["robustness"] if r["perturbation"] == slug)


@pytest.mark.usefixtures("known")
def test_perfect_and_constant_detectors_get_their_scores(root: Path) -> None:
    result, _ = bench(root)
    perfect, never = of(result, "known/level")["whole"], of(result, "known/never")["whole"]
    assert [perfect["micro"][r] for r in ("precision", "recall", "f1", "iou", "oa", "kappa")] == [1] * 6
    assert perfect["f1_interval_95"] == [1, 1]
    assert perfect["boundary_f1"] == 1
    assert perfect["ece"] < 0.01
    assert perfect["mean_per_image"]["f1"] == 1
    assert [o["recall"] for o in perfect["objects"]] == [None, None, 1.0, 1.0, None]
    assert perfect["objects"][2]["from_m2"] == 16.0  # 64 pixels of 0.5 m
    changed = sum((10 + 2 * i) ** 2 for i in range(4))
    assert never["micro"]["f1"] == 0
    assert never["micro"]["precision"] is None
    assert never["micro"]["oa"] == pytest.approx(1 - changed / (4 * 48 * 48))
    assert never["micro"]["fn"] == changed
    assert never["boundary_f1"] is None
    assert [o["found"] for o in never["objects"]] == [0] * 5


@pytest.mark.usefixtures("known")
def test_the_result_is_json_and_its_scores_follow_from_its_counts(root: Path) -> None:
    result = json.loads(json.dumps(bench(root)[0], allow_nan=False))
    for model in result["models"]:
        for mode in ("whole", "tiled"):
            total = np.sum(
                [np.reshape(c, (2, 2)) for c in model[mode]["counts"]["tn_fp_fn_tp"].values()], axis=0
            )
            assert model[mode]["micro"]["f1"] == pytest.approx(binary_scores(total).f1)
        for row in model["robustness"]:
            total = np.sum([np.reshape(c, (2, 2)) for c in row["counts"].values()], axis=0)
            assert row["f1"] == pytest.approx(binary_scores(total).f1)
    assert len(of(result, "known/level")["robustness"]) == len(PERTURBATIONS) == 12


@pytest.mark.usefixtures("known")
def test_paired_tests_tell_the_constant_one_from_the_perfect_one_and_not_equals(root: Path) -> None:
    squares(root, "test", 10)
    result, _ = bench(root, perturbations=())
    found = {(t["first"], t["second"]): t for t in result["tests"]}
    assert len(found) == 3
    equal, worse = found[("known/level", "known/rise")], found[("known/level", "known/never")]
    assert (equal["difference"], equal["p"], equal["p_holm"]) == (0, 1, 1)
    assert worse["difference"] == 1
    assert worse["p"] == 2 / 2**10
    assert worse["p_holm"] == pytest.approx(3 * 2 / 2**10)
    assert worse["interval_95"] == [1, 1]


@pytest.mark.usefixtures("known")
def test_swapped_dates_change_nothing_for_a_symmetric_model_and_all_for_another(root: Path) -> None:
    result, _ = bench(root)
    level, rise = of(result, "known/level"), of(result, "known/rise")
    assert fall(level, "swapped")["drop"] == 0
    assert fall(level, "swapped")["counts"] == level["whole"]["counts"]["tn_fp_fn_tp"]
    assert fall(rise, "swapped")["f1"] == 0
    assert fall(rise, "swapped")["drop"] == 1
    assert fall(level, "shift-4")["drop"] > fall(level, "shift-1")["drop"] > 0
    assert fall(level, "darker")["drop"] == 0
    assert fall(level, "haze-40")["f1"] < 0.5  # a veil of 70 grey values where nothing changed
    low, high = fall(level, "shift-4")["interval_95"]
    assert low < fall(level, "shift-4")["drop"] < high


@pytest.mark.usefixtures("known")
def test_each_test_file_is_read_once_after_everything_was_frozen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    inner = folders.read_rgb
    monkeypatch.setattr(folders, "read_rgb", lambda path, *a: read.append(path.name) or inner(path, *a))
    result, lines = bench(root, threshold="val")
    tested = [n for n in read if n.startswith("test")]
    assert len(tested) == 8  # four images of each date
    assert max(tested.count(n) for n in tested) == 2  # both dates have the same names
    events = [line["event"] for line in lines]
    opened = events.index("test split opened")
    assert [i for i, e in enumerate(events) if e == "model frozen"] == [opened - 3, opened - 2, opened - 1]
    assert events.index("validation split opened") < opened
    closed = next(line for line in lines if line["event"] == "test split closed")
    names = sorted(f"test/{d}/test{i}.png" for d in ("A", "B", "label") for i in range(4))
    assert [f["file"] for f in closed["files"]] == names
    assert {f["opened"] for f in closed["files"]} == {1}
    digests = [line["sha256"] for line in lines if line["event"] == "sample read"]
    assert len(set(digests)) == 4
    assert faults(root.parent / "log.jsonl") == []
    assert result["data"]["images"] == 4


@pytest.mark.usefixtures("known")
def test_earlier_openings_are_counted_also_of_a_copy_and_of_a_part(root: Path, tmp_path: Path) -> None:
    options = {"models": ("known/never",), "perturbations": ()}
    assert bench(root, **options)[0]["opened_before"] == 0
    assert bench(root, limit=1, **options)[0]["opened_before"] == 1
    root.rename(tmp_path / "moved")
    assert bench(tmp_path / "moved", **options)[0]["opened_before"] == 2
    squares(tmp_path / "other", "test", 3, size=40)
    assert bench(tmp_path / "other", **options)[0]["opened_before"] == 0


@pytest.mark.usefixtures("known")
def test_thresholds_of_the_card_or_of_the_validation_split(root: Path) -> None:
    models = ("known/timid", "known/level")
    stated, lines = bench(root, models, perturbations=())
    assert of(stated, "known/timid")["threshold"] == 0.5
    assert of(stated, "known/timid")["whole"]["micro"]["f1"] == 0
    assert of(stated, "known/level")["threshold_from"] == "each image"
    assert not any("val" in json.dumps(line.get("title", "")) for line in lines)
    chosen, lines = bench(root, models, threshold="val", perturbations=())
    assert of(chosen, "known/timid")["threshold_from"] == "val"
    assert 0.005 <= of(chosen, "known/timid")["threshold"] <= 0.3
    assert of(chosen, "known/timid")["whole"]["micro"]["f1"] == 1
    frozen = next(r for r in lines if r["event"] == "model frozen" and r["model"] == "known/timid")
    assert frozen["threshold"] == of(chosen, "known/timid")["threshold"]
    assert len(frozen["weights_sha256"]) == 64
    assert chosen["protocol"]["threshold_split"] == "val"


@pytest.mark.usefixtures("known")
def test_tiles_are_put_together_again(root: Path) -> None:
    result, _ = bench(root, ("known/level",), tile=16, perturbations=())
    model = of(result, "known/level")
    assert not result["protocol"]["whole_and_tiles_coincide"]
    assert model["tiled"]["counts"]["tn_fp_fn_tp"] == model["whole"]["counts"]["tn_fp_fn_tp"]
    assert bench(root, ("known/level",), perturbations=())[0]["protocol"]["whole_and_tiles_coincide"]


@pytest.mark.usefixtures("known")
def test_a_quick_look_says_so(root: Path) -> None:
    result, lines = bench(root, ("known/level",), limit=2, perturbations=("darker",))
    assert result["data"]["limited"]
    assert (result["data"]["images"], result["data"]["available"]) == (2, 4)
    assert sum(line["event"] == "sample read" for line in lines) == 2
    assert [p["slug"] for p in result["perturbations"]] == ["darker"]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("models", "options", "error", "said"),
    [
        ((), {}, SettingError, "names no model"),
        (("known/level", "known/level"), {}, SettingError, "named twice"),
        (("rsmamba/eurosat-nano",), {}, ModelInputError, "classification"),
        (("known/infrared",), {}, ModelInputError, "lack nir"),
        (("known/mamba", "known/scannet"), {}, SettingError, "two orders"),
        (("known/level",), {"data": "eurosat"}, SettingError, "its task is classification"),
        (("known/level",), {"data": "nothing"}, SettingError, "no such data set"),
        (("known/level",), {"threshold": "best"}, SettingError, "neither card nor val"),
        (("known/level",), {"threshold": "val", "val_split": "test"}, SettingError, "is the test split"),
        (("known/level",), {"tile": 8}, SettingError, "too small"),
        (("known/level",), {"device": "cuda:77"}, SettingError, "cuda:77"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    root: Path, models: tuple[str, ...], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        bench(root, models, **options)


@pytest.mark.usefixtures("known")
def test_what_fails_before_the_test_split_leaves_no_opening(root: Path) -> None:
    with pytest.raises(SettingError):
        bench(root, ("known/mamba", "known/scannet"))
    assert not (root.parent / "ledger.jsonl").exists()
    with pytest.raises(ModelInputError):
        bench(root, ("known/infrared",))
    assert bench(root, ("known/never",), perturbations=())[0]["opened_before"] == 1


def test_weights_of_a_training_run_bring_their_calibration(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes((Path(__file__).parents[2] / "weights" / "lenet-nano.safetensors").read_bytes())
    model = f"lenet/nano={path}"
    assert contenders([model], "cpu")[0].source == "card"
    record = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "calibration": {"temperature": 1.75},
        "validation": {"binary": {"threshold": 0.37}},
    }
    (tmp_path / "result.json").write_text(json.dumps(record))
    found = contenders([model], "cpu")[0]
    assert (found.source, found.threshold, found.card.temperature) == ("training", 0.37, 1.75)
    assert found.selection()["temperature"] == 1.75
    (tmp_path / "result.json").write_text(json.dumps({**record, "sha256": "0" * 64}))
    assert contenders([model], "cpu")[0].source == "card"  # the record of other weights
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UnreadableFileError, match=r"result\.json.*no record of a training run"):
        contenders([model], "cpu")


def test_two_orders_of_the_same_classes_do_not_go_together() -> None:
    together([("a", SECOND_MAMBA), ("b", BINARY_CHANGE), ("c", SECOND_MAMBA)])
    with pytest.raises(SettingError, match="a and b: number the same classes"):
        together([("a", SECOND_MAMBA), ("b", SECOND_SCANNET)])


@pytest.mark.usefixtures("known")
def test_costs_are_those_of_the_network() -> None:
    timid, level = contenders(("known/timid", "known/level"), "cpu")
    cost = measure(timid, "cpu")
    assert cost.parameters == 3 * 4 + 4
    assert cost.macs == 256 * 256 * 3 * 4
    assert cost.flops == 2 * cost.macs
    pair = 2 * 3 * 256 * 256 * 4
    assert 4 * 256 * 256 * 4 <= cost.peak_bytes < 3 * pair
    assert measure(level, "cpu").parameters == 0


def test_costs_of_a_network_that_hands_parameters_on() -> None:
    queries = Contender(
        "queries", registry.build("cdmaskformer/nano", untrained=True), "none", "", 0.5, "card"
    )
    cost = measure(queries, "cpu")
    assert cost.parameters == sum(p.numel() for p in queries.system.network.parameters())
    assert cost.macs > 1e8


@pytest.mark.usefixtures("known")
def test_the_digest_is_of_the_values_and_of_the_names() -> None:
    system = contenders(("known/timid",), "cpu")[0].system
    before = weights_digest(system)
    assert before == weights_digest(system)
    with torch.no_grad():
        system.network.bias[0] += 1e-3
    changed = weights_digest(system)
    assert changed != before
    system.network.half()
    assert weights_digest(system) != changed


@pytest.mark.usefixtures("known")
def test_threads_are_given_back_and_change_nothing(root: Path) -> None:
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        result, _ = bench(root, ("known/level", "known/timid"), threads=threads, limit=2)
        assert result["protocol"]["threads"] == threads
        assert torch.get_num_threads() == before
        found.append([m["robustness"] for m in result["models"]])
    assert found[0] == found[1]


@pytest.mark.usefixtures("known")
def test_labels_of_the_other_order_of_second_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "second"
    squares(root, "test", 1)
    for folder in ("label1", "label2"):
        (root / "test" / folder).mkdir()
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(root / "test" / folder / "test0.png")
    options = {"data": "second", "perturbations": ()}
    assert bench(root, ("known/mamba", "known/level"), **options)[0]["data"]["classes"] == "second-mamba"
    with pytest.raises(SettingError, match="second-scannet and second-mamba"):
        bench(root, ("known/scannet",), **options)


def test_only_tasks_with_two_dates_are_compared() -> None:
    assert [str(t) for t in bench_models.TASKS] == ["change", "semantic-change"]
