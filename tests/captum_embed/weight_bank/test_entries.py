import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_embed.weight_bank.entries import StackedRows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_parts_behave_as_the_joined_matrix(lengths: list[int], data: st.DataObject) -> None:
    whole = torch.arange(2 * sum(lengths)).reshape(-1, 2).float()
    rows = StackedRows(whole.split(lengths))
    assert len(rows) == len(whole)
    assert torch.equal(rows.joined(), whole)
    index = st.integers(0, len(whole) - 1)
    wanted = torch.tensor(data.draw(st.lists(index, max_size=6)), dtype=torch.int64)
    assert torch.equal(rows.take(wanted), whole[wanted])
    assert torch.equal(rows.take(wanted[:, None]), whole[wanted[:, None]])
    start, stop = sorted((data.draw(index), data.draw(index) + 1))
    if start < stop:
        assert torch.equal(rows.between(start, stop), whole[start:stop])
    chunks = list(rows.chunks(data.draw(st.integers(1, 7))))
    assert torch.equal(torch.cat([chunk for _, chunk in chunks]), whole)
    assert all(torch.equal(chunk[0], whole[start]) for start, chunk in chunks)


def test_one_part_is_never_copied() -> None:
    whole = torch.zeros(6, 2)
    rows = StackedRows([whole])
    assert rows.joined() is whole
    assert rows.between(2, 4).data_ptr() == whole[2:].data_ptr()
