"""The blocked search equals the naive one."""

import pytest
import torch

from osteon.parts.neighbours import centred_unit, nearest


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
