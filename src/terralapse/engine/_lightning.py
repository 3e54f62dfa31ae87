"""The Lightning side of training; imported only by `terralapse.engine.fit`, since it needs an extra."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler

from terralapse.data.change_mix import ChangeMix
from terralapse.tasks.change_loss import change_loss

if TYPE_CHECKING:
    from terralapse.engine.fit import Recipe


class EpochSampler(Sampler[int]):
    """Sample numbers that never repeat: those of epoch e start at e x `samples`. Lightning sets the epoch,
    also after a resume, so that a run that was cut off sees what it would have seen."""

    def __init__(self, samples: int) -> None:
        self.samples, self.epoch = samples, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.samples, (self.epoch + 1) * self.samples))

    def __len__(self) -> int:
        return self.samples


class KeepLast(L.Callback):
    """Writes what a run needs to go on after every epoch; a kill while it writes leaves the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)
        part.replace(self.path)


class ChangeTraining(L.LightningModule):
    """One network and the exponential average of its weights, which is what is validated and kept."""

    def __init__(self, recipe: Recipe, detector: Any, state: dict[str, Any], steps: int, out: Path) -> None:
        super().__init__()
        self.recipe, self.detector, self.scene_state, self.steps, self.out = (
            recipe,
            detector,
            state,
            steps,
            out,
        )
        self.network: nn.Module = detector.network.train()
        self.average = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
        )
        self.best = -1.0
        self._losses: list[float] = []
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._began = time.monotonic()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, label = batch
        logits = self.network(self.detector.normalise(images, None, self.scene_state))
        loss = change_loss(logits, label, self.recipe.dice)
        self._losses.append(float(loss.detach()))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update_parameters(self.network)

    def on_train_epoch_start(self) -> None:
        self._losses, self._began = [], time.monotonic()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, label = batch
        logits = self.average(self.detector.normalise(images, None, self.scene_state))
        self._seen.append((torch.sigmoid(logits.float()).numpy(), label.numpy()))

    def on_validation_epoch_end(self) -> None:
        from terralapse.engine.fit import best_threshold

        probability, label = (np.concatenate(part) for part in zip(*self._seen, strict=True))
        self._seen = []
        threshold, f1 = best_threshold(probability, label)
        self.log("val_f1", f1)
        if f1 > self.best:
            self.best = f1
            tensors = {k: v.contiguous() for k, v in self.average.module.state_dict().items()}
            save_file(tensors, self.out / "best.safetensors")
        entry = {
            "epoch": self.current_epoch,
            "loss": round(float(np.mean(self._losses)), 5),
            "val_f1": round(f1, 5),
            "threshold": round(threshold, 2),
            "seconds": round(time.monotonic() - self._began, 1),
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.best = checkpoint["best"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            pretrained = bool(recipe.encoder) and name.startswith(("stem", "stage"))
            groups.setdefault((pretrained, parameter.ndim > 1), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": recipe.encoder_lr if pretrained else recipe.lr,
                    "weight_decay": recipe.weight_decay if matrix else 0.0,
                }
                for (pretrained, matrix), parameters in groups.items()
            ]
        )

        def schedule(step: int) -> float:
            if step < recipe.warmup:
                return (step + 1) / recipe.warmup
            done = (step - recipe.warmup) / max(1, self.steps - recipe.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * 0.99 + 0.01

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def run(
    recipe: Recipe,
    detector: Any,
    mix: ChangeMix,
    val: list[tuple[Tensor, Tensor]],
    state: dict[str, Any],
    out: Path,
    resume: bool,
) -> Path:
    """Trains for `recipe.epochs` and returns the path of the best averaged weights."""
    out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    train_loader = DataLoader(mix, recipe.batch, sampler=EpochSampler(recipe.samples), drop_last=True)
    val_loader = DataLoader(val, batch_size=min(6, len(val)))  # pyright: ignore[reportArgumentType]
    training = ChangeTraining(recipe, detector, state, recipe.epochs * len(train_loader), out)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=recipe.epochs,
        precision=recipe.precision,  # pyright: ignore[reportArgumentType]
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        callbacks=[KeepLast(out / "last.ckpt")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    last = out / "last.ckpt"
    trainer.fit(training, train_loader, val_loader, ckpt_path=str(last) if resume and last.exists() else None)
    return out / "best.safetensors"
