import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from terralapse import registry
from terralapse.cards import Card, Status, Task, Weights
from terralapse.errors import (
    FileMissingError,
    SettingError,
    SystemNotReadyError,
    UnreadableFileError,
    UnsafeWeightsError,
    WeightsMismatchError,
)
from terralapse.layers import weights as w


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def card(**changes):
    return Card("x/y", "a test", Task.CHANGE, Status.RUNS, **changes)


def test_float16_file_fills_a_float32_network(tmp_path):
    source, target = network(), network()
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    w.load_weights(target, card(), tmp_path / "w.safetensors")
    for name, value in target.state_dict().items():
        assert value.dtype == source.state_dict()[name].dtype
        assert torch.equal(value, tensors[name].to(value.dtype))


def test_no_weights_anywhere_is_said():
    with pytest.raises(SystemNotReadyError, match="no weights"):
        w.load_weights(network(), card())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("0.bias"), "1 missing: 0.bias"),
        (lambda t: t.update({"2.weight": torch.zeros(1)}), "1 unknown: 2.weight"),
        (lambda t: t.update({"0.bias": torch.zeros(5)}), "1 of another shape: 0.bias"),
    ],
)
def test_mismatch_names_the_tensors_and_leaves_the_network_alone(change, said):
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    tensors = {k: v + 1 for k, v in target.state_dict().items()}
    change(tensors)
    with pytest.raises(WeightsMismatchError, match=said):
        w.load_strict(target, tensors, "a file")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


class Payload:
    """Opens a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, kind):
    path, mark = tmp_path / "w.pth", tmp_path / "ran"
    if kind == "torch":
        torch.save({"0.weight": Payload(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(UnsafeWeightsError, match="could run code"):
        w.read_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_checkpoint_of_tensors_is_read(tmp_path, key):
    state = network().state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "w.pth")
    assert set(w.read_tensors(tmp_path / "w.pth")) == set(state)


def test_tables_of_a_checkpoint_come_first_in_the_names(tmp_path):
    torch.save({"one": {"a.b": torch.ones(2)}, "two": {"a.b": torch.zeros(1)}}, tmp_path / "w.pth")
    found = w.read_tensors(tmp_path / "w.pth")
    assert {name: t.tolist() for name, t in found.items()} == {"one.a.b": [1, 1], "two.a.b": [0]}
    torch.save({"one": {"a": torch.ones(2)}, "two": {"epoch": 3}}, tmp_path / "x.pth")
    with pytest.raises(UnreadableFileError, match="no table of tensors"):
        w.read_tensors(tmp_path / "x.pth")


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(FileMissingError):
        w.read_tensors(tmp_path / "none.safetensors")
    for name, content in (("a.safetensors", b"not one"), ("b.pth", b""), ("c.tif", b"II")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableFileError, match=name):
            w.read_tensors(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "d.pth")
    with pytest.raises(UnreadableFileError, match="no table of tensors"):
        w.read_tensors(tmp_path / "d.pth")


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UnreadableFileError):
        w.read_tensors(path)


def test_hash_is_checked_before_anything_is_read(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    w.check_hash(path, good)
    bad = Weights(path.name, "0" * 64, hub="some/where", revision="f" * 40)
    monkeypatch.setattr(w, "_from_hub", lambda _: path)
    monkeypatch.setattr(w, "read_tensors", lambda _: pytest.fail("was read"))
    with pytest.raises(UnsafeWeightsError, match="sha256"):
        w.load_weights(network(), card(weights=(bad,)))


def test_own_weights_lie_in_the_package_the_repository_or_the_cache(tmp_path, monkeypatch):
    """A wheel holds the defaults only; the others are copied to the cache."""
    monkeypatch.setenv("TERRALAPSE_CACHE", str(tmp_path))
    stored = tmp_path / "weights" / "own.safetensors"
    stored.parent.mkdir()
    save_file({"a": torch.zeros(3)}, stored)
    found = Weights("own.safetensors", hashlib.sha256(stored.read_bytes()).hexdigest())
    assert w.locate(found) == stored
    with pytest.raises(UnsafeWeightsError, match="sha256"):
        w.locate(Weights("own.safetensors", "0" * 64))
    with pytest.raises(FileMissingError, match="folder `weights` of the repository"):
        w.locate(Weights("none.safetensors", "0" * 64))
    for card in registry.cards():
        for weights in card.weights:
            assert w.locate(weights).stat().st_size < 15e6, card.slug


def test_hub_weights_need_a_pinned_revision():
    with pytest.raises(SettingError, match="pins no revision"):
        w.locate(Weights("w.safetensors", "0" * 64, hub="some/where"))


def test_hub_out_of_reach_is_said(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(FileMissingError, match=r"some/where/w\.safetensors"):
        w.locate(Weights("w.safetensors", "0" * 64, hub="some/where", revision="f" * 40))


def test_shipped_file_that_is_not_there():
    with pytest.raises(FileMissingError, match="did not come with this installation"):
        w.locate(Weights("no-such-file.safetensors", "0" * 64))
