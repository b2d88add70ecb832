"""What evaluation costs: neighbours and probes on cached features; ``python -m benchmarks.evaluation``.

Work is interleaved and measured in CPU seconds of one thread, so that other load on the machine counts little.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.sections import ratio, take_turns, write_page
from osteon.core import registry
from osteon.parts.neighbours import nearest

WIDTH, CLASSES = 512, 10
TRAIN, TEST = 50_000, 10_000
#: of a linear probe in lightly
EPOCHS = 90


def draw(rows: int, seed: int = 0, into: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features like a network's: ten overlapping clusters, mixed, rectified; (rows, 512) float32 and labels."""
    fixed = np.random.default_rng(99)
    centres = fixed.normal(size=(CLASSES, WIDTH)).astype(np.float32) * 0.1
    mixing = (fixed.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5 * np.geomspace(2, 0.1, WIDTH)).astype(np.float32)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, rows)
    x = np.empty((rows, WIDTH), dtype=np.float32) if into is None else into
    for start in range(0, rows, 10_000):
        block = centres[y[start:start + 10_000]]
        block = block + rng.standard_normal(block.shape, dtype=np.float32)
        x[start:start + 10_000] = np.maximum(block @ mixing, 0)
    return x, y


def accuracy(scores: np.ndarray, y: np.ndarray) -> float:
    """In per cent."""
    return 100 * float((scores.argmax(1) == y).mean())


def neighbours() -> list[str]:
    """k-NN of 10,000 on 50,000 x 512 (k = 20), screened in bf16 and in float32; with the linear probe, in seconds."""
    (x, y), (test, truth) = draw(TRAIN), draw(TEST, 1)
    unit = [F.normalize(torch.from_numpy(a - x.mean(0)), dim=1) for a in (test, x)]
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    scores: dict[str, np.ndarray] = {}

    def search(name: str, dtype: torch.dtype, count: int) -> Callable[[], None]:
        def work() -> None:
            found[name] = nearest(unit[0][:count], unit[1], 20, screen=dtype)
        return work

    def judge(name: str) -> Callable[[], None]:
        def work() -> None:
            scores[name] = registry.build("evaluator", name)(x, y, test, classes=CLASSES)
        return work

    part = 1000  # of the queries, for the comparison of types: a ratio needs no more
    types = take_turns({"bf16": search("bf16", torch.bfloat16, part), "fp32": search("fp32", torch.float32, part)},
                       warm_up=False)
    same = all(torch.equal(a, b) for a, b in zip(found["bf16"], found["fp32"], strict=True))
    whole = take_turns({"knn": judge("knn"), "linear_probe": judge("linear_probe")}, warm_up=False)
    both = sum(statistics.median(whole[name]) for name in whole)
    return [f"bf16 against float32   {ratio(types['bf16'], types['fp32']):.2f}x the time, "
            f"{'every similarity and row number equal' if same else 'RESULTS DIFFER'}",
            *(f"{name:22} {statistics.median(whole[name]):.2f} CPU s, accuracy {accuracy(scores[name], truth):.2f} %"
              for name in whole),
            f"together               {both:.2f} CPU s: {both / 2:.1f} s on two cores where both are free (wanted under "
            "10 s)"]


def sgd_probe(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor, lr: float, epochs: int = EPOCHS) -> np.ndarray:
    """A linear layer by SGD as peers train theirs: momentum 0.9, cosine to 0, batch 256, no weight decay."""
    layer = torch.nn.Linear(x.shape[1], CLASSES)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    steps = epochs * (len(x) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(256)[:len(x) // 256]:
            loss = F.cross_entropy(layer(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return layer(test).softmax(1).numpy()


def probes() -> list[str]:
    """The closed form against 90 epochs of SGD on the same features (lightly's and solo-learn's protocol).

    Peers crop, mirror and normalise every image and run the backbone on it in every epoch, 90 in lightly and 100 in
    solo-learn: an image's share of both is measured and counted so often, once and without views for osteon. Learning
    rate: lightly's 0.1 x batch / 256 and solo-learn's 0.3 are tried, the better one is shown.
    """
    from PIL import Image
    from torchvision import transforms
    from torchvision.models import resnet18

    (x, y), (test, truth) = draw(TRAIN), draw(TEST, 1)
    scores: dict[str, np.ndarray] = {}
    tensors = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test)

    def ours() -> None:
        scores["ridge"] = registry.build("evaluator", "linear_probe")(x, y, test, classes=CLASSES)

    def theirs(lr: float) -> Callable[[], None]:
        def work() -> None:
            torch.manual_seed(0)
            scores[f"SGD {lr}"] = sgd_probe(*tensors, lr)
        return work

    spent = take_turns({"ridge": ours, "SGD 0.1": theirs(0.1), "SGD 0.3": theirs(0.3)}, rounds=1, warm_up=False)
    ridge = take_turns({"ridge": ours}, rounds=3)["ridge"]
    best = max(("SGD 0.1", "SGD 0.3"), key=lambda name: accuracy(scores[name], truth))
    network, images = resnet18().eval(), torch.randn(64, 3, 32, 32)
    network.conv1, network.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()  # type: ignore
    with torch.no_grad():
        forward = take_turns({"": lambda: network(images)}, rounds=2)[""]
    image = statistics.median(forward) / len(images)
    pictures = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), np.uint8)]
    augment = transforms.Compose([transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(),
                                  transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
    view = statistics.median(take_turns({"": lambda: [augment(p) for p in pictures]}, rounds=3)[""]) / len(pictures)
    own, sgd = statistics.median(ridge), spent[best][0]

    def run(epochs: int) -> float:
        return epochs * (TRAIN * (image + view) + sgd / EPOCHS)
    gap = accuracy(scores["ridge"], truth) - accuracy(scores[best], truth)
    return [f"closed form              {own:8.2f} CPU s, accuracy {accuracy(scores['ridge'], truth):.2f} %",
            f"{best}, {EPOCHS} epochs      {sgd:8.2f} CPU s, accuracy {accuracy(scores[best], truth):.2f} %",
            f"on cached features       {sgd / own:8.0f}x cheaper at {gap:+.2f} points (wanted 100x, within 1 point)",
            f"ResNet-18, one image     {1000 * image:8.2f} CPU ms forward at 32 px, {1000 * view:.2f} to augment; "
            f"{EPOCHS} epochs of {TRAIN:,}, extrapolated: {run(EPOCHS) / 3600:.1f} CPU h",
            *(f"as {peer:21} {run(epochs) / (TRAIN * image + own):8.0f}x cheaper: {epochs} epochs against one pass of "
              "the same backbone" for peer, epochs in (("lightly runs it", EPOCHS), ("solo-learn runs it", 100))),
            f"once features are there  {run(EPOCHS) / own:8.0f}x cheaper (each further label budget, seed, control)"]


CHILD = """
import sys, time, json, resource
import numpy as np, torch
torch.set_num_threads(1)
from benchmarks.evaluation import Anonymous, CLASSES
from osteon.core import registry
folder, rows, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
x = np.memmap(folder + "/x.bin", dtype=np.float32, mode="r", shape=(rows, 512))
y, test = np.load(folder + "/y.npy")[:rows], np.load(folder + "/test.npy")
with Anonymous() as watched:
    begun = time.process_time()
    scores = registry.build("evaluator", name)(x, y, test, classes=CLASSES)
    print(json.dumps([time.process_time() - begun, watched.peak() / 2**20, scores.argmax(1).tolist()]))
"""


class Anonymous:
    """Most memory of this process that is no mapped file, in bytes beyond what it had; looked at every 20 ms."""

    def __enter__(self) -> Anonymous:
        self.before = self.most = self._now()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def peak(self) -> int:
        """So far."""
        return self.most - self.before

    def _watch(self) -> None:
        while not self.stop.wait(0.02):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        return 0


def million() -> list[str]:
    """A million features of 512 numbers (2 GB) in a file, 1,000 queries: memory and time against 100,000."""
    import json

    lines, most = [], 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        x = np.memmap(folder + "/x.bin", dtype=np.float32, mode="w+", shape=(most, WIDTH))
        _, y = draw(most, 5, x)
        x.flush()
        del x
        test, truth = draw(1000, 6)
        np.save(folder + "/y.npy", y)
        np.save(folder + "/test.npy", test)
        for name in ("knn", "linear_probe"):
            for rows in (100_000, most):
                out = subprocess.run([sys.executable, "-c", CHILD, folder, str(rows), name], check=True,
                                     capture_output=True, text=True).stdout
                seconds, peak, guess = json.loads(out.strip().splitlines()[-1])
                lines.append(f"{name:13} {rows:9,} features ({rows * WIDTH * 4 / 2**20:5.0f} MiB in the file): "
                             f"{seconds:6.1f} CPU s, {peak:4.0f} MiB beside it, accuracy "
                             f"{100 * float((np.array(guess) == truth).mean()):.1f} %")
    return lines


def main() -> int:
    """Measure everything and write docs/evidence/evaluation.md."""
    begun = time.perf_counter()
    write_page("evaluation", "What evaluation costs", "CPU seconds of one thread, medians, work interleaved with what "
               "it is compared with. Features are drawn: ten overlapping clusters, mixed and rectified.",
               [("Neighbours", neighbours), ("Linear probe against 90 epochs of SGD", probes),
                ("A million features", million)])
    print(f"{time.perf_counter() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
