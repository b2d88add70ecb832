"""One loader or one training loop of one library, measured alone: a program that ``benchmarks.loading`` runs by the
interpreter that has the library. It imports nothing of osteon but to measure osteon itself.

``python _peer_loading.py NAME FOLDER BATCHES BATCH [train]`` prints CPU seconds an image, and for osteon the seconds of
opening the folder first. ``NAME?`` says whether the library can be imported.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn

SIDE, SEED = 224, 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: A loader gives batches of two views each; ``opened`` are the CPU seconds it took to be ready.
Loader = tuple[Callable[[], Iterable[Any]], float]


def torchvision(folder: str, batch: int) -> Loader:
    """ImageFolder, v2 transforms and a DataLoader, as torchvision's documentation puts them together."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    view = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(SIDE, scale=(0.08, 1.0), antialias=True),
                       v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
                       v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
                       v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    data = ImageFolder(folder, transform=lambda image: (view(image), view(image)))
    return lambda: (pair for pair, _ in DataLoader(data, batch, shuffle=True, drop_last=True)), 0.0


def lightly(folder: str, batch: int) -> Loader:
    """Its SimCLR example: LightlyDataset with SimCLRTransform in a DataLoader."""
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform
    from torch.utils.data import DataLoader

    data = LightlyDataset(folder, transform=SimCLRTransform(input_size=SIDE))
    return lambda: (item[0] for item in DataLoader(data, batch, shuffle=True, drop_last=True)), 0.0


def solo_learn(folder: str, batch: int) -> Loader:
    """Its symmetric SimCLR augmentations for ImageNet-100 (Pillow, the default) and its own DataLoader."""
    from omegaconf import OmegaConf
    from solo.data.pretrain_dataloader import (
        build_transform_pipeline,
        prepare_dataloader,
        prepare_datasets,
        prepare_n_crop_transform,
    )

    wish = OmegaConf.create({
        "rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
        "color_jitter": {"prob": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
        "grayscale": {"prob": 0.2}, "gaussian_blur": {"prob": 0.5}, "solarization": {"prob": 0.0},
        "equalization": {"prob": 0.0}, "horizontal_flip": {"prob": 0.5}, "crop_size": SIDE, "num_crops": 2})
    view = prepare_n_crop_transform([build_transform_pipeline("imagenet100", wish)], [2])
    data = prepare_datasets("imagenet100", view, train_data_path=folder, no_labels=False)
    return lambda: (item[1] for item in prepare_dataloader(data, batch, num_workers=0)), 0.0


def stable_pretraining(folder: str, batch: int) -> Loader:
    """Its SimCLR example: MultiViewTransform of its own transforms of dictionaries, in a DataLoader."""
    from stable_pretraining.data import transforms
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets import ImageFolder

    def view() -> Any:
        return transforms.Compose(
            transforms.RGB(), transforms.RandomResizedCrop((SIDE, SIDE), scale=(0.08, 1.0)),
            transforms.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8), transforms.RandomGrayscale(p=0.2),
            transforms.PILGaussianBlur(sigma=(0.1, 2.0), p=0.5), transforms.RandomHorizontalFlip(p=0.5),
            transforms.ToImage(mean=MEAN, std=STD))

    both, files = transforms.MultiViewTransform([view(), view()]), ImageFolder(folder)

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> Any:
            image, label = files[i]
            return both({"image": image, "label": label})

    def batches() -> Iterator[Any]:
        for item in DataLoader(Rows(), batch, shuffle=True, drop_last=True):
            views = item["views"] if isinstance(item, dict) and "views" in item else item
            yield [part["image"] for part in (views.values() if isinstance(views, dict) else views)]

    return batches, 0.0


def osteon(folder: str, batch: int) -> Loader:
    """The source, its cache (empty at first) and the recipe ``simclr`` of ours."""
    from osteon.data import Loader as Batches
    from osteon.data import open_source
    from osteon.parts.types import Draws, Step
    from osteon.views import make_views

    open_source(folder, limit=1, cache=False)  # imports what reading needs, once a process
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as cache:
        data = open_source(folder, cache=cache)
    opened = time.process_time() - begun
    views = make_views("simclr", data.spec, size=SIDE, min_scale=0.08, strength=1.0, blur=0.5)
    loader = Batches(data, batch, SEED)

    def batches() -> Iterator[Any]:
        for index in range(loader.steps_per_epoch):
            rows = loader.at(index)
            yield [view.x for view in views(rows["image"], Draws.of(rows, Step(index, 1, SEED)))]

    return batches, opened


LOADERS: dict[str, Callable[[str, int], Loader]] = {
    "osteon": osteon, "torchvision": torchvision, "lightly": lightly, "solo-learn": solo_learn,
    "stable-pretraining": stable_pretraining}


def load(name: str, folder: str, batches: int, batch: int) -> tuple[float, float]:
    """CPU seconds a pair in passes over the folder, and of opening it."""
    make, opened = LOADERS[name](folder, batch)
    passes = chain.from_iterable(make() for _ in repeat(None))
    first = next(passes)
    if not all(x.shape == (batch, 3, SIDE, SIDE) and x.dtype == torch.float32 for x in first) or len(first) != 2:
        raise SystemExit(f"{name} gives {[tuple(x.shape) for x in first]}")
    begun = time.process_time()
    for _ in range(batches):
        next(passes)
    return (time.process_time() - begun) / (batches * batch), opened


class SimCLR(nn.Module):
    """ResNet-18 of torchvision and lightly's projection head (512, 512, 128): what its example trains."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules import SimCLRProjectionHead
        from torchvision.models import resnet18

        self.backbone = nn.Sequential(*list(resnet18().children())[:-1])
        self.head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).flatten(1))


def train_lightly(folder: str, batches: int, batch: int) -> float:
    """CPU seconds an image of lightly's SimCLR example: its loader, its loss, SGD."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(SEED)
    make, _ = lightly(folder, batch)
    model, loss_of = SimCLR(), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    passes = chain.from_iterable(make() for _ in repeat(None))
    begun = 0.0
    for index in range(batches + 1):
        if index == 1:
            begun = time.process_time()
        x0, x1 = next(passes)
        loss = loss_of(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - begun) / (batches * batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    word = sys.argv[1]
    if word.endswith("?"):
        LOADERS[word[:-1]](sys.argv[2], 2)
    elif sys.argv[5:] == ["train"]:
        print(train_lightly(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        print(*load(word, sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
