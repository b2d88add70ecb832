from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.norm import BatchNorm, sum_over_ranks

SHAPES = {"rows": (8, 3), "maps": (8, 3, 4, 5)}
CUT = 3  # rank 0 holds 3 samples, rank 1 the other 5


def example(kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weights of the loss, and (kind "sparse") which positions are visible."""
    g = torch.Generator().manual_seed(1)
    shape = SHAPES.get(kind, SHAPES["maps"])
    x, w = (torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 1 for _ in range(2))
    where = torch.rand(shape[0], *shape[2:], generator=g) < 0.4 if kind == "sparse" else None
    if where is not None:
        where[0] = False  # a sample with nothing visible
    return x, w, where


def measure(kind: str, rows: slice) -> dict[str, Tensor]:
    x, w, where = example(kind)
    norm = BatchNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
    part = x[rows].clone().requires_grad_()
    y = norm(part, where=None if where is None else where[rows])
    (y * y * w[rows]).sum().backward()
    return {"y": y.detach(), "x": part.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
            "mean": norm.running_mean, "var": norm.running_var}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, CUT) if rank == 0 else slice(CUT, None)
    results = {kind: measure(kind, rows) for kind in ("rows", "maps", "sparse")}
    v = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    total = sum_over_ranks(v)
    (total * torch.tensor([3.0 + rank, 1.0])).sum().backward()
    results["sum"] = {"total": total.detach(), "grad": v.grad}
    lone = BatchNorm(2).double()(torch.arange(2.0).double()[None] + rank)  # one row a rank
    results["lone"] = {"y": lone.detach()}
    half = BatchNorm(3)(example("rows")[0][rows].bfloat16())
    results["half"] = {"y": half.detach()}
    refused = ""
    try:
        BatchNorm(2)(torch.zeros(1 - rank, 2))  # one value in the whole world
    except UsageError as error:
        refused = str(error)
    results["refused"] = {"yes": torch.tensor("at least two" in refused)}
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = Path(tmp_path_factory.mktemp("gloo"))
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["rows", "maps", "sparse"])
def test_two_processes_give_what_one_gives(two_ranks, kind):
    whole = measure(kind, slice(None))
    a, b = two_ranks[0][kind], two_ranks[1][kind]
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([a[key], b[key]]), whole[key], atol=1e-10, rtol=1e-8)
    for key in ("weight", "bias"):  # parameter gradients of the parts add up
        torch.testing.assert_close(a[key] + b[key], whole[key], atol=1e-9, rtol=1e-8)
    for key in ("mean", "var"):
        torch.testing.assert_close(a[key], b[key], atol=0, rtol=0)
        torch.testing.assert_close(a[key], whole[key], atol=1e-10, rtol=1e-8)


def test_sum_over_ranks_and_its_gradient(two_ranks):
    for rank in (0, 1):
        assert two_ranks[rank]["sum"]["total"].tolist() == [3.0, 4.0]  # 1 + 2, 2 + 2
        assert two_ranks[rank]["sum"]["grad"].tolist() == [7.0, 2.0]  # what both losses owe: 3 + 4, 1 + 1


def test_one_row_a_rank_is_enough_and_one_in_the_world_is_not(two_ranks):
    # feature 0 is 0 and 1, feature 1 is 1 and 2: standardised -1 and 1 up to eps
    for rank, sign in ((0, -1.0), (1, 1.0)):
        torch.testing.assert_close(two_ranks[rank]["lone"]["y"], torch.full((1, 2), sign).double(), atol=1e-4, rtol=0)
        assert bool(two_ranks[rank]["refused"]["yes"])
    with pytest.raises(UsageError, match="at least two"):
        BatchNorm(2)(torch.zeros(1, 2))


def test_half_precision_keeps_its_type_over_ranks(two_ranks):
    got = torch.cat([two_ranks[rank]["half"]["y"] for rank in (0, 1)])
    assert got.dtype == torch.bfloat16
    want = nn.BatchNorm1d(3)(example("rows")[0].float())
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("theirs", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (6, 3, 4, 5)),
                                               (nn.BatchNorm3d, (6, 3, 2, 4, 5))])
def test_equals_torch_on_one_process(theirs, shape):
    torch.manual_seed(0)
    other, ours = theirs(3), BatchNorm(3)
    ours.load_state_dict(other.state_dict())
    for _ in range(3):
        x = torch.randn(shape) * 3 + 2
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ya, yb = other(a), ours(b)
        ya.square().sin().sum().backward()
        yb.square().sin().sum().backward()
        assert torch.equal(ya, yb) and torch.equal(a.grad, b.grad)
    for key, value in other.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    assert torch.equal(other.eval()(x), ours.eval()(x))


def test_tokens_are_normalised_over_their_last_axis():
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BatchNorm(3)(x), nn.BatchNorm1d(3)(x.transpose(1, 2)).transpose(1, 2))


def test_value_a_person_can_recompute():
    # visible values 1, 3, 5: mean 3, variance 8/3; the hidden 100 counts nowhere
    x = torch.tensor([[[[1.0, 100.0], [3.0, 5.0]]]])
    norm = BatchNorm(1, eps=1e-12)
    y = norm(x, where=torch.tensor([[[True, False], [True, True]]]))
    want = torch.tensor([[-2.0, 0.0], [0.0, 2.0]]) / (8 / 3) ** 0.5
    torch.testing.assert_close(y[0, 0], want)
    assert norm.running_mean.item() == pytest.approx(0.1 * 3)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.1 * 4)  # unbiased: 8 / 2


def test_hidden_positions_are_zero_and_change_nothing():
    x, _, where = example("sparse")
    hidden = ~where[:, None].expand_as(x)
    a, b = BatchNorm(3).double(), BatchNorm(3).double()
    nn.init.constant_(a.bias, 5.0), nn.init.constant_(b.bias, 5.0)
    y = a(x, where=where)
    z = b(torch.where(hidden, torch.full_like(x, torch.nan), x), where=where)
    assert torch.equal(y, z) and torch.equal(a.running_var, b.running_var)
    assert (y[hidden] == 0).all() and (y[~hidden] != 0).all()
    y = a.eval()(x, where=where)  # the same holds with running statistics
    torch.testing.assert_close(y, a(x).masked_fill(hidden, 0))


@pytest.mark.parametrize("kind", ["rows", "maps"])
def test_everything_visible_is_the_dense_norm(kind):
    x, _, _ = example(kind)
    where = torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool)
    torch.testing.assert_close(BatchNorm(3).double()(x, where=where), BatchNorm(3).double()(x))


@pytest.mark.parametrize(("affine", "shift", "names"), [(True, None, {"weight", "bias"}), (False, None, set()),
                                                       (True, False, {"weight"}), (False, True, {"bias"})])
def test_switches(affine, shift, names):
    norm = BatchNorm(3, affine=affine, shift=shift)
    assert {n for n, _ in norm.named_parameters()} == names
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = norm(x)
    torch.testing.assert_close(y, nn.BatchNorm1d(3, affine=False)(x))
    y.square().sum().backward()
    assert all(p.grad is not None for p in norm.parameters())


def test_refusals():
    with pytest.raises(UsageError, match="over 3 features"):
        BatchNorm(3)(torch.zeros(4, 5))
    with pytest.raises(UsageError, match="over 3 features"):
        BatchNorm(3)(torch.zeros(2, 3, 4, 4, 4, 4))
    with pytest.raises(UsageError, match="bool tensor of shape"):
        BatchNorm(3)(torch.zeros(2, 3, 4, 4), where=torch.ones(2, 4, 5, dtype=torch.bool))
    with pytest.raises(UsageError, match="bool tensor of shape"):
        BatchNorm(3)(torch.zeros(2, 3, 4, 4), where=torch.ones(2, 4, 4))
    with pytest.raises(UsageError, match="at least two"):
        BatchNorm(3)(torch.zeros(2, 3, 4, 4), where=torch.zeros(2, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("layout", ["channels_last", "rows"])
def test_many_values_of_a_feature_are_summed_precisely(layout):
    """PyTorch's CPU kernel is wrong by 1e-5 in these layouts, which deep networks turn into a per cent of gradient."""
    g = torch.Generator().manual_seed(0)
    shape = (128, 6, 32, 32) if layout == "channels_last" else (131072, 6)
    x, w = torch.randn(shape, generator=g) * 2 + 1, torch.randn(shape, generator=g)
    got, want = [], []
    for dtype, into in ((torch.float32, got), (torch.float64, want)):
        norm = BatchNorm(6).to(dtype)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 6))
            norm.bias.copy_(torch.linspace(-1, 1, 6))
        z = x.detach().to(dtype, copy=True)
        z = z.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else z
        z.requires_grad_()
        y = norm(z)
        assert y.stride() == z.stride()
        y.backward(w.to(dtype))
        into += [y.detach(), z.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    for a, b in zip(got, want, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 1e-6


def test_precise_sums_have_the_right_gradient_with_every_switch():
    from osteon.parts.norm import _ByRows

    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in ((9, 3), (3,), (3,)))
    assert torch.autograd.gradcheck(lambda *a: _ByRows.apply(*a, 1e-5)[0], (x, w, b))
    bare = BatchNorm(3, affine=False)
    rows = torch.randn(4096, 3, generator=g)
    torch.testing.assert_close(bare(rows).mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(bare(rows).var(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_hidden_cells_of_a_volume_are_zero_and_change_nothing():
    g = torch.Generator().manual_seed(0)
    x, where = torch.randn(2, 3, 2, 3, 4, generator=g), torch.rand(2, 2, 3, 4, generator=g) < 0.5
    y = BatchNorm(3)(x, where=where)
    rows = x.movedim(1, -1)[where]
    want = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(y.movedim(1, -1)[where], want)
    assert (y.movedim(1, -1)[~where] == 0).all()
    z = torch.randn(64, 2, 4, 8, 8, generator=g).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(BatchNorm(2)(z), nn.BatchNorm3d(2)(z), atol=1e-5, rtol=1e-5)
