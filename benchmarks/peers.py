"""SimCLR with ResNet-18 as peers' documentation sets it up, beside osteon's: ``python -m benchmarks.peers``.

From stored images to the optimiser's update, views included, one thread. Every contestant lives in a process of its own
(some add callbacks to every Trainer of the process they are imported in) and takes its turn when told to, so that turns
are interleaved. Peers are looked for in this interpreter, or in that of OSTEON_PEERS (a throw-away environment):

    python -m venv peers; peers/bin/pip install -c constraints.txt . torchvision lightly stable-pretraining
    git clone https://github.com/vturrisi/solo-learn   # the registry's release is far older
    OSTEON_PEERS=peers/bin/python PYTHONPATH=.:solo-learn python -m benchmarks.peers

CIFAR-10. What differs is theirs: lightly's example has the ImageNet stem, at 32 px a far smaller network, so the stem
for small images that the others use is put in; solo-learn trains a linear classifier beside, stable-pretraining a
linear and a k-NN probe; osteon measures collapse. Peers run in float32, as they do on a CPU unless told otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.sections import ratio, write_page

BATCH, IMAGES, ROUNDS = int(os.environ.get("OSTEON_PEERS_BATCH", 32)), 2048, 3


def turns(step: Callable[[], object]) -> None:
    """Two steps to warm up, then one at every line read, its CPU seconds printed."""
    step(), step()
    print("READY", flush=True)
    for _ in sys.stdin:
        begun = time.process_time()
        step()
        print("SECONDS", time.process_time() - begun, flush=True)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's first images (N, 32, 32, 3) uint8 and labels; drawn ones where it is not there."""
    try:
        from benchmarks.claims.kit import cifar

        data = cifar("train", IMAGES)
        return np.asarray(data.images).transpose(0, 2, 3, 1).copy(), np.asarray(data.labels)
    except Exception:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, IMAGES)


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """PIL images and labels, as torchvision's CIFAR10 gives them."""

    def __init__(self, transform: Any = None) -> None:
        self.images, self.labels = pictures()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self.images[i])
        return (self.transform(image) if self.transform else image), int(self.labels[i])


def endless(loader: Any) -> Any:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def small_resnet() -> nn.Module:
    """torchvision's ResNet-18 with the stem for small images and without its classifier."""
    from torchvision.models import resnet18

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = network.fc = nn.Identity()  # type: ignore[assignment]
    return network


# -- contestants -------------------------------------------------------------------------------------------------------


def bare() -> None:
    """A plain loop: torchvision's transforms of PIL images, torchvision's network, NT-Xent in four lines, SGD."""
    from torch.nn import functional as F
    from torchvision import transforms as t

    one = t.Compose([t.RandomResizedCrop(32, scale=(0.08, 1)), t.RandomHorizontalFlip(),
                     t.RandomApply([t.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8), t.RandomGrayscale(0.2), t.ToTensor(),
                     t.Normalize((0.5,) * 3, (0.25,) * 3)])
    loader = torch.utils.data.DataLoader(Pictures(lambda x: (one(x), one(x))), BATCH, shuffle=True, drop_last=True)
    network = nn.Sequential(small_resnet(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    batches = endless(loader)
    own, partner = torch.eye(2 * BATCH, dtype=torch.bool), torch.arange(2 * BATCH).roll(BATCH)

    def step() -> None:
        (a, b), _ = next(batches)
        z = F.normalize(network(torch.cat([a, b])), dim=1)
        loss = F.cross_entropy((z @ z.T / 0.5).masked_fill(own, -torch.inf), partner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    turns(step)


def osteon(**wishes: Any) -> None:
    """osteon's loop in one step: loader, views, engine; the monitor of collapse at every step (a run: every 20th)."""
    from benchmarks.steps import engine
    from osteon.data import Dataset, Loader
    from osteon.parts.types import Step
    from osteon.train.monitors import CollapseMonitor

    images, labels = pictures()
    data = Dataset.from_arrays(images.transpose(0, 3, 1, 2).copy(), labels)
    work, monitor = engine("simclr", "resnet18", 32, BATCH, wishes), CollapseMonitor()
    batches = Loader(data, BATCH, 0).iterate(0, 10_000)
    at = iter(range(10_000))

    def step() -> None:
        index = next(at)
        _, features, _ = work.run(next(batches), Step(index, 10_000, 0))
        monitor.check(features, index)

    turns(step)


def lightly() -> None:
    """lightly's SimCLR example in plain PyTorch, its settings for 32 px (no blur), its SGD."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms.simclr_transform import SimCLRTransform

    network, head, criterion = small_resnet(), SimCLRProjectionHead(512, 512, 128), NTXentLoss()
    data = LightlyDataset.from_torch_dataset(Pictures(), transform=SimCLRTransform(input_size=32, gaussian_blur=0.0))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.06)
    batches = endless(loader)

    def step() -> None:
        x0, x1 = next(batches)[0]
        z0, z1 = (head(network(x).flatten(start_dim=1)) for x in (x0, x1))
        loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    turns(step)


def told() -> Any:
    """A callback of Lightning's Trainer by which its batches take turns like the steps of the others."""
    from lightning.pytorch.callbacks import Callback

    class Told(Callback):
        begun = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx < 2:
                return
            print("READY" if batch_idx == 2 else f"SECONDS {time.process_time() - self.begun}", flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.begun = time.process_time()

    return Told()


def solo() -> None:
    """solo-learn's cifar/simclr.yaml by its own code (main_pretrain.py) on a CPU, in float32."""
    from lightning.pytorch import Trainer
    from omegaconf import OmegaConf
    from solo.data.pretrain_dataloader import (
        FullTransformPipeline,
        NCropAugmentation,
        build_transform_pipeline,
        dataset_with_index,
        prepare_dataloader,
    )
    from solo.methods import METHODS
    from solo.utils.misc import make_contiguous

    views = OmegaConf.create({
        "rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
        "color_jitter": {"prob": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
        "grayscale": {"prob": 0.2}, "gaussian_blur": {"prob": 0.5}, "solarization": {"prob": 0.0},
        "equalization": {"prob": 0.0}, "horizontal_flip": {"prob": 0.5}, "crop_size": 32, "num_crops": 2})
    cfg = OmegaConf.create({
        "name": "simclr", "method": "simclr", "backbone": {"name": "resnet18", "kwargs": {}}, "max_epochs": 1000,
        "method_kwargs": {"proj_hidden_dim": 2048, "proj_output_dim": 256, "temperature": 0.2},
        "data": {"dataset": "cifar10", "num_classes": 10, "num_large_crops": 2, "num_small_crops": 0},
        "optimizer": {"name": "lars", "batch_size": BATCH, "lr": 0.4 * BATCH / 256, "classifier_lr": 0.1 * BATCH / 256,
                      "weight_decay": 1e-4, "kwargs": {"clip_lr": True, "eta": 0.02, "exclude_bias_n_norm": True,
                                                       "momentum": 0.9}},
        "scheduler": {"name": "warmup_cosine"}, "accumulate_grad_batches": 1, "augmentations": [views]})
    model = METHODS["simclr"](cfg)
    connector = "lightning.pytorch.trainer.connectors.callback_connector"
    # stable-pretraining, where it is installed, would add its callbacks to this Trainer too.
    importlib.import_module(connector)._load_external_callbacks = lambda group: []
    make_contiguous(model)
    model = model.to(memory_format=torch.channels_last)
    transform = FullTransformPipeline([NCropAugmentation(build_transform_pipeline("cifar10", views), 2)])
    loader = prepare_dataloader(dataset_with_index(Pictures)(transform), BATCH, num_workers=0)
    Trainer(max_epochs=1000, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[told()],
            enable_progress_bar=False, enable_model_summary=False).fit(model, loader)


def stable() -> None:
    """stable-pretraining's complete SimCLR example of its README on a CPU, both probes included."""
    os.environ["HOME"] = tempfile.mkdtemp()  # it keeps a record of every run there
    import lightning as pl
    import stable_pretraining as spt
    import torchmetrics
    from stable_pretraining import forward
    from stable_pretraining.data import transforms as t

    def view(least: float, *more: Any) -> Any:
        return t.Compose(t.RGB(), t.RandomResizedCrop((32, 32), scale=(least, 1.0)), t.RandomHorizontalFlip(p=0.5),
                         t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
                         t.RandomGrayscale(p=0.2), *more, t.ToImage(**spt.data.static.CIFAR10))

    views = t.MultiViewTransform([view(0.2), view(0.08, t.RandomSolarize(threshold=0.5, p=0.2))])
    data = spt.data.FromTorchDataset(Pictures(), names=["image", "label"], transform=views)
    loader = torch.utils.data.DataLoader(dataset=data, batch_size=BATCH, drop_last=True, shuffle=True)
    backbone = spt.backbone.from_torchvision("resnet18", low_resolution=True)
    backbone.fc = nn.Identity()
    projector = nn.Sequential(nn.Linear(512, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True), nn.Linear(2048, 2048),
                              nn.BatchNorm1d(2048), nn.ReLU(inplace=True), nn.Linear(2048, 256))
    module = spt.Module(backbone=backbone, projector=projector, forward=forward.simclr,
                        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
                        optim={"optimizer": {"type": "LARS", "lr": 5, "weight_decay": 1e-6},
                               "scheduler": {"type": "LinearWarmupCosineAnnealing"}, "interval": "epoch"})
    top1 = torchmetrics.classification.MulticlassAccuracy
    linear = spt.callbacks.OnlineProbe(module, name="linear_probe", input="embedding", target="label",
                                       probe=nn.Linear(512, 10), loss=nn.CrossEntropyLoss(),
                                       metrics={"top1": top1(10), "top5": top1(10, top_k=5)})
    knn = spt.callbacks.OnlineKNN(name="knn_probe", input="embedding", target="label", queue_length=20000,
                                  metrics={"accuracy": top1(10)}, input_dim=512, k=10)
    trainer = pl.Trainer(max_epochs=1000, accelerator="cpu", logger=False, enable_checkpointing=False,
                         callbacks=[linear, knn, told()], enable_progress_bar=False, enable_model_summary=False,
                         num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, spt.data.DataModule(train=loader, val=loader))


CONTESTANTS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "bare loop": ("torchvision", "torchvision", bare), "lightly": ("lightly", "lightly", lightly),
    "solo-learn": ("solo.data", "solo-learn", solo), "stable-pretraining": ("stable_pretraining", "stable-pretraining",
                                                                            stable),
    "osteon": ("osteon", "", osteon),
    "osteon, float32": ("osteon", "", lambda: osteon(precision="32"))}


#: those that training end to end is wanted to cost at most 0.6 of
PEERS = ("lightly", "solo-learn", "stable-pretraining")


# -- the race ----------------------------------------------------------------------------------------------------------


class Contestant:
    """A process that takes a step when told to."""

    def __init__(self, name: str) -> None:
        python = os.environ.get("OSTEON_PEERS", sys.executable)
        self.name, self.errors = name, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([python, "-m", "benchmarks.peers", "--be", name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"})
        self.seconds: list[float] = []
        self.why = self._wait("READY")

    def turn(self) -> None:
        """One step."""
        if self.why is None and self.process.stdin:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.why = self._wait("SECONDS")

    def _wait(self, word: str) -> str | None:
        """None when the word came, else why it never will."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(word):
                if word == "SECONDS":
                    self.seconds.append(float(line.split()[1]))
                return None
            if line.startswith("ABSENT"):
                return line.strip()
        self.process.wait()
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["it ended without a word"])[-1][:200]

    def end(self) -> None:
        """Close its input, which ends it."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def race() -> list[str]:
    """CPU milliseconds an image of a step at batch 32, from stored 32 px images, views and update included.

    Median of the ratios of each round; osteon as it comes (bf16 where the processor has it, channels_last) and in
    float32.
    """
    field = [Contestant(name) for name in CONTESTANTS]
    for _ in range(ROUNDS):
        for contestant in field:
            contestant.turn()
    lines, ours = [], next(c for c in field if c.name == "osteon")
    for contestant in field:
        contestant.end()
        if contestant.why is not None:
            lines.append(f"{contestant.name:20} not measured: {contestant.why}")
            continue
        cost = 1000 * statistics.median(contestant.seconds) / BATCH
        text = f"{contestant.name:20} {cost:8.1f} ms CPU an image"
        if contestant is not ours:
            text += f"   osteon takes {ratio(ours.seconds, contestant.seconds):.2f}x of it"
            text += " (wanted at most 0.6x)" if contestant.name in PEERS else ""
        lines.append(text)
    return lines


def main() -> int:
    """Run the race and write docs/evidence/peers.md, or be one of the contestants."""
    if "--be" in sys.argv:
        torch.set_num_threads(1)
        package, called, be = CONTESTANTS[sys.argv[sys.argv.index("--be") + 1]]
        try:
            there = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            print(f"ABSENT {called} is not installed", flush=True)
            return 0
        be()
        return 0
    versions = subprocess.run([os.environ.get("OSTEON_PEERS", sys.executable), "-c", (
        "import importlib.metadata as m\nfor n in ('lightly','solo-learn','stable-pretraining','torchvision'):\n"
        "    try: print(n, m.version(n))\n    except m.PackageNotFoundError:\n"
        "        if n == 'solo-learn': print(n, 'a checkout of its repository')")], capture_output=True,
        text=True).stdout.split("\n")
    write_page("peers", "A training step against peers", f"{(__doc__ or '').split(chr(10) * 2, 1)[1].strip()}\n\n"
               f"Versions: {', '.join(v for v in versions if v)}.", [("A step", race)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
