from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from terralapse import registry
from terralapse.cards import Card, Status
from terralapse.errors import SystemNotReadyError, WeightsMismatchError
from terralapse.labels import SCHEMES
from terralapse.layers.decoding import interleave
from terralapse.layers.weights import read_tensors
from terralapse.models.change import changemamba
from terralapse.models.change.changemamba import (
    SIZES,
    VARIANTS,
    ChangeDecoder,
    MambaBCD,
    MambaBDA,
    MambaSCD,
    SemanticDecoder,
    change_losses,
    damage_losses,
    semantic_change_losses,
)
from terralapse.tasks.metrics import binary_scores, confusion_matrix

KINDS = {"bcd": MambaBCD, "scd": MambaSCD, "bda": MambaBDA}
CARDS = {c.slug.partition("/")[2]: c for c in VARIANTS}
TWO_STAGES: dict[str, Any] = {"dims": (16, 32), "depths": (1, 1), "drop_path_rate": 0.0, "width": 16}
ENTRIES = {  # of the official state dict
    "bcd-tiny": 514,
    "bcd-small": 712,
    "bcd-base": 712,
    "scd-tiny": 802,
    "scd-small": 1000,
    "scd-base": 1000,
    "bda-tiny": 659,
    "bda-small": 857,
    "bda-base": 857,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with normalisations that have seen something: at the start it is nearly linear."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "norm" in name or "bn" in name or name.endswith(("bias", "A_logs", "Ds")):
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
    return network.eval()


def small(kind: str) -> Any:
    torch.manual_seed(0)
    return lively(KINDS[kind](**TWO_STAGES))


def detector(slug: str = "bcd-nano") -> Any:
    torch.manual_seed(0)
    found = registry.build(f"changemamba/{slug}", untrained=True)
    lively(found.network)
    return found


def logits_of(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# --- what it is ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CARDS)
def test_the_number_of_parameters(name: str) -> None:
    kind, _, size = name.partition("-")
    s = SIZES[size]
    with torch.device("meta"):
        network = KINDS[kind](s.dims, s.depths, s.drop_path_rate, s.width)
    assert sum(p.numel() for p in network.parameters()) == CARDS[name].parameters
    assert len(network.state_dict()) == ENTRIES.get(name, len(network.state_dict()))


@pytest.mark.parametrize("dims", [SIZES["tiny"].dims, SIZES["base"].dims], ids=["tiny", "base"])
def test_the_number_of_parameters_of_the_decoders(dims: tuple[int, ...]) -> None:
    wanted = {96: (4_619_264, 2_255_616), 128: (4_865_024, 2_317_056)}[dims[0]]
    with torch.device("meta"):
        built = ChangeDecoder(dims, 128), SemanticDecoder(dims, 128)
    assert tuple(sum(p.numel() for p in d.parameters()) for d in built) == wanted


def test_the_cards() -> None:
    assert set(CARDS) == {f"{k}-{s}" for k in KINDS for s in SIZES} - {"scd-nano"}
    for card in VARIANTS:
        assert any("order" in limit for limit in card.limits)
        assert card.classes in SCHEMES
        ours = card.slug.endswith("nano")
        assert bool(card.weights) == ours
        assert ("our own" in card.title) == ours
        golden = card.slug.endswith("tiny")  # the size that the golden cases have
        assert card.status is (Status.REPRODUCED if golden else Status.RUNS)
        assert {f.source for f in card.figures} == {"here" if ours else "paper"}
        assert bool(card.released) != ours
    f1 = {(f.dataset, f.metric): f.value for f in CARDS["bcd-tiny"].figures}
    assert f1["LEVIR-CD+ test", "change F1"] == 0.8804
    assert changemamba.HEAD.parameters == CARDS["bcd-tiny"].parameters


@pytest.mark.parametrize(("kind", "channels"), [("bcd", [2]), ("scd", [2, 7, 7]), ("bda", [2, 5])])
@pytest.mark.parametrize("size", [(16, 24), (8, 8)])
def test_logits_have_the_size_of_the_input(kind: str, channels: list[int], size: tuple[int, int]) -> None:
    with torch.no_grad():
        found = logits_of(small(kind)(normal(2, 3, *size), normal(2, 3, *size, seed=1)))
    assert [tuple(x.shape) for x in found] == [(2, c, *size) for c in channels]


# --- how the dates meet ----------------------------------------------------------------------------------
def test_interleaving_and_back() -> None:
    before, after = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    mixed = interleave(before, after)
    assert mixed.shape == (2, 3, 4, 10)
    assert torch.equal(mixed[..., ::2], before)
    assert torch.equal(mixed[..., 1::2], after)
    same = interleave(before, before)
    assert torch.equal(same[..., ::2], same[..., 1::2])


def test_the_five_maps_are_fused_in_their_order() -> None:
    """A fusion that picks one of the five parts sees that arrangement and no other."""
    torch.manual_seed(0)
    decoder = ChangeDecoder((6,), 4)
    lively(decoder)
    before, after = normal(1, 6, 3, 4), normal(1, 6, 3, 4, seed=1)
    with torch.no_grad():
        stacked, mixed, beside = (decoder.get_submodule(f"st_block_1{i}") for i in (1, 2, 3))
        crossed, wide = mixed(interleave(before, after)), beside(torch.cat([before, after], dim=3))
        wanted = [
            stacked(torch.cat([before, after], dim=1)),
            crossed[..., 0::2],
            crossed[..., 1::2],
            wide[..., :4],
            wide[..., 4:],
        ]
        conv = decoder.get_submodule("fuse_layer_1.0")
        for part, map_ in enumerate(wanted):
            conv.weight.zero_()
            conv.bias.zero_()
            for c in range(4):
                conv.weight[c, 4 * part + c] = 1.0
            bn = decoder.get_submodule("fuse_layer_1.1")
            assert torch.allclose(decoder([before], [after]), torch.relu(bn(map_)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_dates_matters(kind: str) -> None:
    network = small(kind)
    before, after = normal(1, 3, 16, 16), normal(1, 3, 16, 16, seed=1)
    with torch.no_grad():
        forth, back = logits_of(network(before, after)), logits_of(network(after, before))
    assert relative(forth[0], back[0]) > 0.02


def test_buildings_are_found_on_the_first_date_alone() -> None:
    network = small("bda")
    before, after, other = (normal(1, 3, 16, 16, seed=s) for s in range(3))
    with torch.no_grad():
        building, damage = network(before, after)
        again, changed = network(before, other)
    assert torch.allclose(building, again, atol=1e-6)
    assert relative(damage, changed) > 0.01


def test_each_semantic_map_is_of_its_date_by_decoders_of_its_own() -> None:
    network = small("scd")
    before, after, other = (normal(1, 3, 16, 16, seed=s) for s in range(3))
    with torch.no_grad():
        _, first, second = network(before, after)
        _, again, changed = network(before, other)
        _, same1, same2 = network(before, before)
    assert torch.allclose(first, again, atol=1e-6)
    assert relative(second, changed) > 0.01
    assert relative(same1, same2) > 0.01


def test_a_pair_does_not_see_the_others_of_its_batch() -> None:
    network = small("bcd")
    before, after = normal(3, 3, 16, 16), normal(3, 3, 16, 16, seed=1)
    with torch.no_grad():
        together = network(before, after)
        assert torch.allclose(together[1:2], network(before[1:2], after[1:2]), atol=1e-5)


# --- as a system -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 7), (33, 70)])
@pytest.mark.parametrize("slug", ["bcd-nano", "bda-nano"])
def test_sides_of_any_size(slug: str, size: tuple[int, int]) -> None:
    found = detector(slug)
    with torch.no_grad():
        output = found.forward(normal(1, 2, 3, *size))
    assert output.change().probability().shape == (1, *size)
    assert torch.isfinite(output.change().logits).all()


def test_the_semantic_system_gives_classes_inside_of_change() -> None:
    network = small("scd")
    found = changemamba.MambaSCDDetector(CARDS["scd-tiny"], network)
    with torch.no_grad():
        output = found.forward(normal(1, 2, 3, 20, 23))
    first, second = output.maps()
    changed = output.change().logits > 0
    assert first.shape == second.shape == (1, 20, 23)
    assert ((first > 0) == changed).all()
    assert ((second > 0) == changed).all()


@pytest.mark.parametrize("slug", ["bcd-nano", "bda-nano"])
def test_missing_pixels_stay_where_they_are(slug: str) -> None:
    found = detector(slug)
    images = 127 + 60 * normal(1, 2, 3, 40, 50)
    images[0, 1, 2, 11:14, 20] = float("nan")
    valid = ~images.isnan().any(dim=2)
    valid[0, 0, 30:, :10] = False
    images[0, 0, :, 30:, :10] = float("nan")
    state = {"bands": [0, 1, 2], "temperature": 1.0}
    assert torch.isfinite(found.predict(images, valid, state)).all()


def test_calibration_shifts_the_log_odds() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        before = found.forward(images).logits
        found.shift_logits(0.75)
        assert torch.allclose(found.forward(images).logits, before + 0.75, atol=1e-5)


# --- types and memory --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32(kind: str) -> None:
    network = small(kind)
    dates = normal(1, 3, 24, 16), normal(1, 3, 24, 16, seed=1)
    with torch.no_grad():
        wanted = logits_of(network(*dates))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = logits_of(network(*dates))
        network.bfloat16()
        narrow = logits_of(network(*(d.bfloat16() for d in dates)))
    for other in (mixed, narrow):
        assert all(relative(o, w) < 0.05 for o, w in zip(other, wanted, strict=True))
    scans = [p for n, p in network.named_parameters() if n.endswith(("A_logs", "Ds"))]
    assert scans
    assert all(p.dtype == torch.float32 for p in scans)


def test_checkpointing_gives_the_same_gradients() -> None:
    network = small("bda").train()
    dates = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
    found = []
    for on in (False, True):
        network.checkpointing = on
        network.zero_grad()
        torch.manual_seed(3)
        sum(x.square().mean() for x in network(*dates)).backward()
        found.append({n: p.grad.clone() for n, p in network.named_parameters()})
    assert network.checkpointing
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6), name


def test_it_compiles() -> None:
    network = lively(MambaBCD((8,), (1,), 0.0, 8))
    dates = normal(1, 3, 8, 12), normal(1, 3, 8, 12, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        assert relative(torch.compile(network, backend="aot_eager")(*dates), wanted) < 1e-5


@pytest.mark.slow
def test_it_runs_in_onnx(tmp_path: Path) -> None:
    """One stage, fixed sides, any number of pairs; the plain scan is unrolled, so the graph is large."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network = lively(MambaBCD((8,), (1,), 0.0, 8))
    dates = normal(2, 3, 8, 12), normal(2, 3, 8, 12, seed=1)
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    program = torch.onnx.export(
        network, dates, dynamo=True, dynamic_shapes=(batch, batch), optimize=False, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    for pairs in (1, 3):
        fresh = [normal(pairs, 3, 8, 12, seed=s) for s in (5, 6)]
        named = {i.name: x.numpy() for i, x in zip(session.get_inputs(), fresh, strict=True)}
        with torch.no_grad():
            wanted = network(*fresh)
        assert np.abs(session.run(None, named)[0] - wanted.numpy()).max() < 1e-4


# --- losses ----------------------------------------------------------------------------------------------
def test_a_perfect_map_costs_nothing() -> None:
    label = torch.randint(0, 2, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    sure = 50 * nn.functional.one_hot(label, 2).permute(0, 3, 1, 2).float()
    assert change_losses(sure, label)["total"].item() == pytest.approx(0.0, abs=1e-5)


def test_pixels_that_are_ignored_train_nothing() -> None:
    """A label of 255 counts neither for change, nor for the classes, nor as unchanged."""
    change, first, second = (normal(1, k, 6, 6, seed=k).requires_grad_() for k in (2, 7, 8))
    second_logits = second[:, :7]
    classes = torch.zeros(1, 6, 6, dtype=torch.long)
    classes[0, :2] = 3
    classes[0, 4:] = 255
    label = torch.where(classes == 255, 255, (classes > 0).long())
    parts = semantic_change_losses(change, first, second_logits, label, classes, classes)
    parts["total"].backward()
    for x in (change, first, second):
        assert x.grad is not None
        assert (x.grad[:, :, 4:] == 0).all()
        assert (x.grad[:, :, :4] != 0).any()
    assert (change.grad[:, :, 2:4] != 0).any()  # pyright: ignore[reportOptionalSubscript]


def test_a_batch_without_a_graded_building_trains_the_buildings() -> None:
    building, damage = normal(1, 2, 4, 4).requires_grad_(), normal(1, 5, 4, 4, seed=1).requires_grad_()
    nothing = torch.zeros(1, 4, 4, dtype=torch.long)
    parts = damage_losses(building, damage, nothing, nothing)
    parts["total"].backward()
    assert parts["ce_damage"].item() == parts["lovasz_damage"].item() == 0.0
    assert parts["total"].item() > 0
    assert (damage.grad == 0).all()


@pytest.mark.parametrize("slug", ["bcd-nano", "bda-nano", "scd-tiny"])
def test_losses_take_targets_of_the_data_sets(slug: str) -> None:
    card, kind = CARDS[slug], slug[:3]
    found = {
        "bcd": changemamba.MambaBCDDetector,
        "scd": changemamba.MambaSCDDetector,
        "bda": changemamba.MambaBDADetector,
    }[kind](card, small(kind))
    label = torch.zeros(1, 9, 13, dtype=torch.uint8)
    label[0, 2:5] = 1
    label[0, 8] = 255
    target = {
        "label": label,
        "before": label * 4,
        "after": label * 2,
        "building": label,
        "damage": label * 3,
    }
    for name in ("before", "after", "damage"):
        target[name][label == 255] = 255
    parts = found.loss(found.forward(normal(1, 2, 3, 9, 13)), target)
    parts["total"].backward()
    assert all(torch.isfinite(p) and p.ndim == 0 for p in parts.values())
    assert parts["total"].item() > 0


def test_two_pairs_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    network = MambaBCD(**TWO_STAGES).train()
    before = normal(2, 3, 24, 24)
    after, label = before + 0.1 * normal(2, 3, 24, 24, seed=1), torch.zeros(2, 24, 24, dtype=torch.long)
    for image, (row, col) in enumerate([(4, 8), (12, 4)]):
        after[image, :, row : row + 8, col : col + 8] += 2.0
        label[image, row : row + 8, col : col + 8] = 1
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    f1 = 0.0
    for step in range(60):
        optimiser.zero_grad()
        logits = network(before, after)
        change_losses(logits, label)["total"].backward()
        optimiser.step()
        if step >= 20 and step % 5 == 0:
            guess = logits.argmax(dim=1).numpy()
            f1 = binary_scores(confusion_matrix(label.numpy(), guess, 2)).f1
            if f1 > 0.95:
                break
    assert f1 > 0.95


# --- files of weights --------------------------------------------------------------------------------------
def written(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda t: t) -> Path:
    tensors = change({k: v.clone() for k, v in detector().network.state_dict().items()})
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def build(path: Path, card: Card = CARDS["bcd-nano"]) -> Any:
    return changemamba.build(card, path)


def test_without_a_file_it_is_not_ready() -> None:
    with pytest.raises(SystemNotReadyError, match="no weights"):
        registry.build("changemamba/bcd-tiny")


@pytest.mark.parametrize("name", ["own.safetensors", "plain.pth"])
def test_a_file_of_weights_comes_back(tmp_path: Path, name: str) -> None:
    wanted = detector().network.state_dict()
    found = build(written(tmp_path / name)).network
    assert not found.training
    assert all(torch.equal(v, wanted[k]) for k, v in found.state_dict().items())


def test_the_wrapper_of_distributed_training_is_taken_off(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", lambda t: {f"module.{k}": v for k, v in t.items()})
    assert build(path).network.state_dict().keys() == detector().network.state_dict().keys()


@pytest.mark.parametrize("fault", ["extra", "missing", "shape", "other task"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        match fault:
            case "extra":
                return tensors | {"decoder.st_block_11.2.op.Ds2": torch.ones(3)}
            case "missing":
                return {k: v for k, v in tensors.items() if k != "main_clf.bias"}
            case "shape":
                return tensors | {"encoder.outnorm3.weight": torch.ones(768)}
        return tensors

    card = CARDS["bda-nano" if fault == "other task" else "bcd-nano"]
    with pytest.raises(WeightsMismatchError):
        build(written(tmp_path / "a.pth", spoil), card)


def test_the_encoder_starts_from_imagenet(tmp_path: Path) -> None:
    found = detector()
    body = {k: v + 1 for k, v in found.network.encoder.state_dict().items() if not k.startswith("outnorm")}
    torch.save({"model": body | {"classifier.head.weight": torch.ones(10, 192)}}, tmp_path / "vmamba.pth")
    found.start_encoder(read_tensors(tmp_path / "vmamba.pth"))
    own = found.network.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in body.items())
    other = changemamba.build(CARDS["bda-nano"], untrained=True)
    found.start_encoder(other.network.state_dict())  # of another task, whose decoders are left where they are
    theirs = other.network.encoder.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in found.network.encoder.state_dict().items())
    del body["layers.2.blocks.1.op.Ds"]
    with pytest.raises(WeightsMismatchError, match=r"op\.Ds"):
        found.start_encoder(body)
