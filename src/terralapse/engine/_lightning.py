"""The Lightning side of training; imported only by `terralapse.engine.fit`, since it needs an extra."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler

from terralapse.engine.recipe import Recipe
from terralapse.engine.runner import has_bf16
from terralapse.engine.sources import Batch, Sources
from terralapse.tasks.measures import measure_for
from terralapse.tasks.network import NetworkSystem


class EpochSampler(Sampler[int]):
    """Sample numbers that never repeat: those of epoch e start at e x `samples`. Lightning sets the epoch,
    also after a resume, so that a run that was cut off sees what it would have seen. Each of `replicas`
    processes takes every replicas-th."""

    def __init__(self, samples: int, rank: int = 0, replicas: int = 1) -> None:
        self.samples, self.rank, self.replicas, self.epoch = samples, rank, replicas, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.samples
        return iter(range(first + self.rank, first + len(self) * self.replicas, self.replicas))

    def __len__(self) -> int:
        return self.samples // self.replicas


class Share(Sampler[int]):
    """Every replicas-th sample of a validation split, so that each is counted once over all processes."""

    def __init__(self, length: int, rank: int, replicas: int) -> None:
        self.numbers = range(rank, length, replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class KeepLast(L.Callback):
    """Writes what a run needs to go on after every epoch; a kill while it writes leaves the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self.path)


def _precision(recipe: Recipe) -> str:
    """That of Lightning; see `Recipe`."""
    if recipe.precision != "auto":
        return recipe.precision
    cuda = recipe.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if has_bf16(torch.device("cuda" if cuda else "cpu")) else "32-true"


class Training(L.LightningModule):
    """One system and the exponential average of its weights, which is what is validated and kept."""

    def __init__(self, recipe: Recipe, system: NetworkSystem, source: Sources, steps: int, out: Path) -> None:
        super().__init__()
        self.recipe, self.system, self.source, self.steps, self.out = recipe, system, source, steps, out
        self.network: nn.Module = system.network.train()
        self.average = (
            AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
            if recipe.ema
            else None
        )
        if self.average is not None:
            self.average.requires_grad_(False)  # it is no part of what several processes have to reduce
        own = source.measure
        self.measure = measure_for(system.card.task, source.classes) if own is None else own
        self.best = -2.0
        self._losses: list[dict[str, float]] = []
        self._began = time.monotonic()

    def _forward(self, batch: Batch) -> Any:
        return self.system.respond(batch, self.source.state)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        if self.recipe.mixup or self.recipe.cutmix:
            batch = self._mixed(batch)
        if self.source.step is None:
            parts = self.system.loss(self._forward(batch), batch)
        else:
            parts = self.source.step(self.system, batch, self.source.state, self.global_step / self.steps)
        self._losses.append({name: float(part.detach()) for name, part in parts.items()})
        return parts["total"]

    def _mixed(self, batch: Batch) -> Batch:
        from terralapse.tasks.label_smoothing import mix_batch

        images, shares = mix_batch(
            batch["images"], batch["label"], self.source.classes, self.recipe.mixup, self.recipe.cutmix
        )
        return {**batch, "images": images, "label": shares}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None and (batch_idx + 1) % self.recipe.accumulate == 0:
            self.average.update_parameters(self.network)

    def on_train_epoch_start(self) -> None:
        self._losses, self._began = [], time.monotonic()

    def on_validation_epoch_start(self) -> None:
        if self.average is not None:
            self.system.network = self.average.module

    def validation_step(self, batch: Batch, _: int) -> None:
        self.measure.update(self._forward(batch), batch)

    def on_validation_epoch_end(self) -> None:
        self.system.network = self.network
        scores = self.measure.compute()
        self.measure.reset()
        main = self.measure.main_score(scores)
        mean = {
            f"loss_{name}" if name != "total" else "loss": float(np.mean([p[name] for p in self._losses]))
            for name in (self._losses[0] if self._losses else ())
        }
        self.log_dict({self.measure.monitor: main, **mean}, sync_dist=self.trainer.world_size > 1)
        if not self.trainer.is_global_zero:
            return
        if main > self.best:
            self.best = main
            kept = self.network if self.average is None else self.average.module
            tensors = {k: v.contiguous() for k, v in kept.state_dict().items()}
            save_file(tensors, self.out / "best.safetensors")
        entry = {
            "epoch": self.current_epoch,
            **{name: round(value, 5) for name, value in mean.items()},
            self.measure.monitor: round(main, 5),
            "scores": scores,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, default=float) + "\n")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.best = checkpoint["best"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            pretrained = bool(recipe.encoder) and name.startswith(("encoder", "stem", "stage", "backbone"))
            decayed = parameter.ndim > 1 and not getattr(parameter, "no_decay", False)
            groups.setdefault((pretrained, decayed), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": recipe.encoder_lr if pretrained else recipe.lr,
                    "weight_decay": recipe.weight_decay if decayed else 0.0,
                }
                for (pretrained, decayed), parameters in groups.items()
            ]
        )

        def schedule(step: int) -> float:
            if step < recipe.warmup:
                return (step + 1) / recipe.warmup
            if recipe.schedule == "constant":
                return 1.0
            if recipe.schedule == "step":
                return recipe.step_factor ** (step // recipe.step_every)
            done = (step - recipe.warmup) / max(1, self.steps - recipe.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * 0.99 + 0.01

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def run(recipe: Recipe, system: NetworkSystem, source: Sources, out: Path, resume: bool) -> Path:
    """Trains for `recipe.epochs` and returns the path of the best weights.

    With several devices every process comes here; all but the first end with the training.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    samples = recipe.samples or source.length
    batches = max(1, samples // recipe.devices // recipe.batch)
    steps = recipe.epochs * max(1, batches // recipe.accumulate)
    training = Training(recipe, system, source, steps, out)
    trainer = L.Trainer(
        accelerator=recipe.accelerator,
        devices=recipe.devices,
        # Published networks have parameters that no forward pass uses.
        strategy="ddp_find_unused_parameters_true" if recipe.devices > 1 else "auto",
        max_epochs=recipe.epochs,
        precision=_precision(recipe),  # pyright: ignore[reportArgumentType]
        gradient_clip_val=recipe.clip or None,
        accumulate_grad_batches=recipe.accumulate,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        callbacks=[KeepLast(out / "last.ckpt")],
        logger=[CSVLogger(out, name="logs"), TensorBoardLogger(out, name="logs")],
        log_every_n_steps=max(1, batches),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    sampler = EpochSampler(samples, trainer.global_rank, trainer.world_size)
    train_loader = DataLoader(
        source.train, recipe.batch, sampler=sampler, drop_last=True, num_workers=recipe.workers
    )
    share = Share(len(source.val), trainer.global_rank, trainer.world_size)  # pyright: ignore[reportArgumentType]
    val_loader = DataLoader(
        source.val, batch_size=recipe.val_batch, sampler=share, num_workers=recipe.workers
    )
    last = out / "last.ckpt"
    trainer.fit(training, train_loader, val_loader, ckpt_path=str(last) if resume and last.exists() else None)
    if not trainer.is_global_zero:
        raise SystemExit(0)
    return out / "best.safetensors"
