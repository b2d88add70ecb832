"""The blocked search equals the naive one."""

import pytest
import torch
from torch.nn import functional as F

from osteon.parts import neighbours
from osteon.parts.neighbours import centred_unit, nearest
from osteon.parts.rows import Rows


def naive(query: torch.Tensor, store: torch.Tensor, k: int, leave: bool) -> list[list[int]]:
    similarity = query @ store.T
    out = []
    for i, row in enumerate(similarity.tolist()):
        out.append([j for j in sorted(range(len(row)), key=lambda j: (-row[j], j)) if not (leave and i == j)][:k])
    return out


@pytest.mark.parametrize("blocks", [(512, 8192), (3, 7), (1, 1), (5, 100)])
@pytest.mark.parametrize("leave", [False, True])
def test_equals_brute_force_with_ties(blocks: tuple[int, int], leave: bool) -> None:
    x = torch.randint(-2, 3, (40, 3), generator=torch.Generator().manual_seed(0)).float()  # whole numbers: many ties
    values, rows = nearest(x, x, 6, exclude_self=leave, query_block=blocks[0], store_block=blocks[1])
    assert rows.tolist() == naive(x, x, 6, leave)
    assert torch.equal(values, (x @ x.T).gather(1, rows))


def test_company_does_not_matter() -> None:
    g = torch.Generator().manual_seed(1)
    store, query = torch.randn(300, 64, generator=g), torch.randn(50, 64, generator=g)
    values, rows = nearest(query, store, 5)
    for i in (0, 17, 49):
        alone = nearest(query[i:i + 1], store, 5)
        assert torch.equal(alone[0][0], values[i]) and torch.equal(alone[1][0], rows[i])


def test_k_is_cut_to_what_there_is() -> None:
    x = torch.eye(3)
    assert nearest(x, x, 10)[1].shape == (3, 3) and nearest(x, x, 10, exclude_self=True)[1].shape == (3, 2)
    assert nearest(x[:1], x[:1], 5, exclude_self=True)[1].shape == (1, 0)


def test_centred_unit_by_hand() -> None:
    x = torch.tensor([[4.0, 5.0], [1.0, 1.0]])
    assert torch.allclose(centred_unit(x, torch.tensor([1.0, 1.0])), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def rows_of_length_one(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("few", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["apart", "near", "crowded", "packed", "handful", "copies", "long"])
def test_few_digits_change_nothing(few: torch.dtype, kind: str) -> None:
    """Whatever it is screened in, the same neighbours and the same similarities, bit for bit."""
    store, query = rows_of_length_one(1500, 64, 0), rows_of_length_one(40, 64, 1)
    spread = {"near": 3e-2, "crowded": 1e-3, "packed": 1e-4, "handful": 1e-4}.get(kind)
    if spread:  # few digits cannot tell any two of them apart; nor, packed, can float32
        store, query = (F.normalize(x * spread + store[:1], dim=1) for x in (store, query))
    if kind == "handful":  # every row is a candidate
        store = store[:60]
    elif kind == "copies":  # more equals than candidates
        store = store[:3].repeat(500, 1)
    elif kind == "long":  # beyond what float16 holds
        store = store * 1e6
    found = nearest(query, store, 5, screen=few, store_block=400)
    wanted = nearest(query, store, 5, screen=torch.float32)
    exact = (query.double() @ store.double().T).float().sort(dim=1, descending=True, stable=True)
    for values, rows in (found, wanted):
        assert torch.equal(values, exact.values[:, :5]) and torch.equal(rows, exact.indices[:, :5])


def test_what_cannot_be_told_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, int]] = []
    plain = neighbours._Search.screened

    def spy(self, rung):  # type: ignore[no-untyped-def]
        seen.append((rung.dtype, len(self.q)))
        return plain(self, rung)

    monkeypatch.setattr(neighbours._Search, "screened", spy)
    store, query = rows_of_length_one(2000, 64, 0), rows_of_length_one(30, 64, 1)
    nearest(query, store, 3, screen=torch.bfloat16)
    assert seen == [(torch.bfloat16, 30)]  # far apart: the first look decides
    seen.clear()
    nearest(torch.cat([query, query[:1]]), torch.cat([store, query[:1].repeat(500, 1)]), 3, screen=torch.bfloat16)
    assert [n for _, n in seen] == [31, 2, 2]  # only those that look at 500 copies of themselves go on


def test_rows_left_out_by_groups_are_none_of_the_largest() -> None:
    x = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0))
    x[:, 990:] += 3  # columns beyond whole groups
    for count in (1, 7, 31):
        v, i = neighbours._largest(x, count)
        assert torch.equal(v.sort(1).values, x.topk(count, 1).values.sort(1).values) and torch.equal(x.gather(1, i), v)


def test_read_in_blocks_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    x = rows_of_length_one(900, 64, 3)
    np.save(tmp_path / "x.npy", x.numpy())
    there = Rows(np.load(tmp_path / "x.npy", mmap_mode="r"))
    for leave in (False, True):
        found, wanted = (nearest(a, a, 4, exclude_self=leave, store_block=256) for a in (there, x))
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
