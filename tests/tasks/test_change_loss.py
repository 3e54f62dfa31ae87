import torch

from terralapse.tasks.change_loss import IGNORE, change_loss


def test_known_value():
    logits = torch.zeros(1, 2, 2)
    label = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
    dice = 1 - (2 * 0.5 + 1) / (4 * 0.5 + 1 + 1)
    assert torch.isclose(change_loss(logits, label), torch.tensor(0.6931472 + dice))
    assert torch.isclose(change_loss(logits, label, dice_weight=0.0), torch.tensor(0.6931472))


def test_ignored_pixels_have_no_influence_and_no_gradient():
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, 0, 0], label[0, 3] = 1, IGNORE
    logits = torch.randn(1, 4, 4, requires_grad=True)
    loss = change_loss(logits, label)
    loss.backward()
    assert (logits.grad[0, 3] == 0).all()
    assert (logits.grad[0, :3] != 0).all()
    other = logits.detach().clone()
    other[0, 3] = 50.0
    assert torch.isclose(change_loss(other, label), loss)


def test_nothing_to_learn_is_zero_and_finite():
    label = torch.full((2, 3, 3), IGNORE, dtype=torch.uint8)
    assert change_loss(torch.randn(2, 3, 3), label) == 0


def test_better_is_lower():
    label = (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.1).to(torch.uint8)
    sign = label.float() * 2 - 1
    losses = [float(change_loss(k * sign, label)) for k in (-3, 0, 1, 3, 9)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02
