from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from captum_embed.errors import BankFileError, BankMismatchError, InputError
from captum_embed.weight_bank import WeightBank


def random_bank(count: int = 20, seed: int = 0, **arguments: Any) -> WeightBank:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, 4, generator=generator)
    return WeightBank(embeddings, torch.randn(count, 6, generator=generator), **arguments)


def random_queries(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(99))


def test_search_equals_scipy() -> None:
    bank, queries = random_bank(), random_queries()
    tree = KDTree(bank.embeddings.double().numpy())
    expected_distances, expected_indices = tree.query(queries.double().numpy(), k=3)
    distances, indices = bank.search(queries, k=3)
    assert distances.shape == indices.shape == (7, 3)
    assert distances.dtype == torch.float32
    np.testing.assert_array_equal(indices.numpy(), expected_indices)
    np.testing.assert_allclose(distances.numpy(), expected_distances, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 4, 20])
def test_transfer_is_the_mean_over_the_nearest_entries(k: int) -> None:
    bank, queries = random_bank(), random_queries()
    table = torch.cdist(queries.double(), bank.embeddings.double())
    expected = torch.stack([bank.weights[row.argsort()[:k]].mean(0) for row in table])
    torch.testing.assert_close(bank.transfer(queries, k), expected)


def test_an_entry_transfers_exactly_its_own_weights() -> None:
    bank = random_bank()
    assert torch.equal(bank.transfer(bank.embeddings), bank.weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_banks_answer_in_single_precision(dtype: torch.dtype) -> None:
    bank = random_bank().to(dtype)
    assert bank.transfer(random_queries(), 2).dtype == torch.float32
    assert bank.search(random_queries())[0].dtype == torch.float32
    distances, indices = bank.search(bank.embeddings)
    assert indices[:, 0].tolist() == list(range(20))
    assert (distances == 0).all()
    assert torch.equal(bank.transfer(bank.embeddings), bank.weights.float())


def test_double_precision_stays_double() -> None:
    bank = random_bank().to(torch.float64)
    assert bank.transfer(random_queries().double()).dtype == torch.float64
    assert bank.search(random_queries())[0].dtype == torch.float64


def test_queries_may_require_gradients_and_results_never_do() -> None:
    embeddings = torch.eye(3, requires_grad=True)
    bank = WeightBank(embeddings, torch.ones(3, 2, requires_grad=True))
    queries = torch.ones(1, 3, requires_grad=True)
    assert not bank.transfer(queries).requires_grad
    assert not bank.embeddings.requires_grad
    assert embeddings.requires_grad


def test_entries_are_not_copied() -> None:
    embeddings, weights = torch.eye(3), torch.ones(3, 2)
    bank = WeightBank(embeddings, weights)
    assert bank.embeddings.data_ptr() == embeddings.data_ptr()
    assert bank.weights.data_ptr() == weights.data_ptr()


def test_no_queries_give_an_empty_result() -> None:
    assert random_bank().transfer(torch.empty(0, 4)).shape == (0, 6)


@pytest.mark.parametrize(
    ("queries", "error", "message"),
    [
        (torch.ones(2, 5), BankMismatchError, r"queries have 5 numbers.* embeddings 4"),
        (torch.ones(4), InputError, r"shape \(4,\); expected .*query\[None\]"),
        (torch.ones(2, 4, 1), InputError, r"shape \(2, 4, 1\)"),
        (torch.ones(2, 4, dtype=torch.int64), InputError, "int64"),
        (np.ones((2, 4)), InputError, "ndarray"),
        (torch.tensor([[0.0] * 4, [0.0, torch.nan, 0.0, 0.0]]), InputError, "query 1 holds NaN"),
        (torch.tensor([[torch.inf] * 4]), InputError, "query 0 holds NaN or inf"),
    ],
)
def test_refuses_queries_naming_what_is_wrong(
    queries: Any, error: type[ValueError], message: str
) -> None:
    for method in (random_bank().search, random_bank().transfer):
        with pytest.raises(error, match=message):
            method(queries)


@pytest.mark.parametrize("k", [0, -1, 21, 1.0, True, None])
def test_refuses_k_out_of_range(k: Any) -> None:
    with pytest.raises(InputError, match=r"k is .* expected an integer from 1 to 20"):
        random_bank().search(random_queries(), k)


NAN = torch.tensor([[1.0], [torch.nan]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.ones(2)}, r"embeddings have shape \(2,\)"),
        ({"weights": torch.ones(2, 3, 1)}, r"weights have shape \(2, 3, 1\)"),
        ({"embeddings": torch.ones(0, 3), "weights": torch.ones(0, 3)}, r"shape \(0, 3\)"),
        ({"embeddings": torch.ones(2, 0)}, r"shape \(2, 0\)"),
        ({"embeddings": torch.ones(3, 1)}, "embeddings have 3 rows.* weights 2"),
        ({"embeddings": torch.ones(2, 1, dtype=torch.int64)}, "embeddings are torch.int64"),
        ({"weights": torch.ones(2, 1, dtype=torch.complex64)}, "weights are torch.complex64"),
        ({"weights": [[1.0], [2.0]]}, "weights are list"),
        ({"embeddings": NAN}, "embeddings, row 1, hold NaN"),
        ({"weights": -NAN.nan_to_num(torch.inf)}, "weights, row 1, hold NaN or infinite"),
        ({"labels": [1]}, r"labels have shape \(1,\); expected \(2,\)"),
        ({"labels": [1.0, 2.0]}, "labels are torch.float32"),
        ({"labels": [True, False]}, "labels are torch.bool"),
        ({"labels": ["a", "b"]}, "labels are not integers"),
        ({"keys": ["a"]}, "keys are 1 names; expected 2"),
        ({"keys": "ab"}, "keys are one string"),
        ({"keys": ["a", "a"]}, "key 'a' occurs twice"),
        ({"keys": ["a", 3]}, "key 3 is not a name"),
        ({"keys": ["a", ""]}, "key '' is not a name"),
        ({"keys": ["a", "\ud800"]}, "is not a name"),
        ({"metadata": {"seed": 3}}, "'seed': 3; expected strings"),
    ],
)
def test_refuses_entries_naming_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    good = {"embeddings": torch.ones(2, 1), "weights": torch.ones(2, 3)}
    WeightBank(**good)
    with pytest.raises(InputError, match=message):
        WeightBank(**{**good, **arguments})


def test_repr_and_properties_tell_what_the_bank_holds() -> None:
    bank = random_bank(labels=range(20), metadata={"layer": "features"})
    assert repr(bank) == (
        "WeightBank(20 entries, embedding_dim=4, num_channels=6, layer='features', labels, "
        "float32, cpu)"
    )
    assert (len(bank), bank.embedding_dim, bank.num_channels) == (20, 4, 6)
    assert bank.labels is not None
    assert bank.labels.tolist() == list(range(20))
    assert bank.keys is None


def test_metadata_is_read_only_and_not_the_callers() -> None:
    given = {"layer": "features"}
    bank = random_bank(metadata=given)
    given["layer"] = "other"
    assert bank.metadata["layer"] == "features"
    with pytest.raises(TypeError):
        bank.metadata["layer"] = "other"  # type: ignore[index]


def test_to_leaves_the_bank_as_it_is() -> None:
    bank = random_bank(keys=[f"image {i}" for i in range(20)], labels=[3] * 20)
    other = bank.to(torch.float64)
    assert other is not bank
    assert (bank.weights.dtype, other.weights.dtype) == (torch.float32, torch.float64)
    assert other.keys == bank.keys
    assert torch.equal(other.embeddings.float(), bank.embeddings)
    moved = bank.to("meta")
    assert moved.device.type == moved.labels.device.type == "meta"  # type: ignore[union-attr]
    assert bank.to("cpu").weights.data_ptr() == bank.weights.data_ptr()
    assert bank.to(device="cpu", dtype=torch.bfloat16).embeddings.dtype == torch.bfloat16


def test_to_refuses_a_dtype_that_loses_entries() -> None:
    bank = WeightBank(torch.eye(2), torch.tensor([[1.0, 2.0], [1e-9, 0.0]]))
    with pytest.raises(InputError, match=r"weights, row 1, are too small.*bfloat16"):
        bank.to(torch.float16)
    assert (bank.to(torch.bfloat16).weights[1] != 0).any()
    with pytest.raises(InputError, match=r"weights as torch.float16, row 0, hold"):
        WeightBank(torch.eye(1), torch.tensor([[1e6]])).to(torch.float16)
    with pytest.raises(InputError, match=r"dtype is torch\.int64"):
        bank.to(torch.int64)


def test_concat_searches_as_one_bank() -> None:
    first = random_bank(12, 1, keys=[f"a{i}" for i in range(12)], labels=[0] * 12)
    second = random_bank(5, 2, keys=[f"b{i}" for i in range(5)], labels=[1] * 5)
    joined = WeightBank.concat([first, second])
    whole = WeightBank(
        torch.cat([first.embeddings, second.embeddings]), torch.cat([first.weights, second.weights])
    )
    assert len(joined) == 17
    assert torch.equal(joined.embeddings, whole.embeddings)
    for ours, theirs in zip(
        joined.search(random_queries(), 9), whole.search(random_queries(), 9), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(joined.transfer(random_queries(), 3), whole.transfer(random_queries(), 3))
    assert joined.keys == (*(first.keys or ()), *(second.keys or ()))
    assert joined.labels is not None
    assert joined.labels.tolist() == [0] * 12 + [1] * 5


def test_concat_keeps_the_metadata_that_all_agree_on() -> None:
    first = random_bank(metadata={"layer": "a", "seed": "1", "margin": "0.2"})
    second = random_bank(metadata={"layer": "a", "seed": "2"})
    assert dict(WeightBank.concat([first, second]).metadata) == {"layer": "a"}


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (WeightBank(torch.ones(1, 5), torch.ones(1, 6)), BankMismatchError, "embedding_dim 5.* 4"),
        (WeightBank(torch.ones(1, 4), torch.ones(1, 7)), BankMismatchError, "num_channels 7.* 6"),
        (random_bank(metadata={"layer": "b"}), BankMismatchError, "bank 1 has layer b, bank 0"),
        (random_bank(metadata={"encoder_fingerprint": "b"}), BankMismatchError, "fingerprint b"),
        (random_bank(metadata={"explains": "loss"}), BankMismatchError, "explains loss, bank 0"),
        (random_bank(metadata={"layout": "tokens"}), BankMismatchError, "layout tokens, bank 0"),
        (random_bank(metadata={"prefix_tokens": "1"}), BankMismatchError, "prefix_tokens 1"),
        (random_bank().to(torch.float64), InputError, "dtype torch.float64"),
        (random_bank(labels=[1] * 20), InputError, "labels present"),
        (random_bank(keys=[str(i) for i in range(20)]), InputError, "keys present"),
    ],
)
def test_concat_refuses_banks_that_differ(
    second: WeightBank, error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        WeightBank.concat([random_bank(), second])


def test_concat_refuses_no_banks_and_keys_that_repeat() -> None:
    with pytest.raises(InputError, match="banks is empty"):
        WeightBank.concat([])
    with pytest.raises(InputError, match="banks holds str; expected"):
        WeightBank.concat([random_bank(2), "birds.bank"])  # type: ignore[list-item]
    first, second = (random_bank(2, keys=keys) for keys in (["a", "b"], ["c", "a"]))
    with pytest.raises(InputError, match=r"'a' is in bank 0 and in bank 1.*keys=\[\.\.\.\]"):
        WeightBank.concat([first, second])
    joined = WeightBank.concat([first, second], keys=["a", "b", "c", "d"])
    assert joined.keys == ("a", "b", "c", "d")
    with pytest.raises(InputError, match="keys are 3 names; expected 4"):
        WeightBank.concat([first, second], keys=["a", "b", "c"])
    assert WeightBank.concat([random_bank(2), first], keys=list("abcd")).keys == tuple("abcd")


@pytest.mark.parametrize(
    "wanted",
    [
        slice(3, 15, 4),
        slice(None, None, -1),
        [4, 1, -1],
        np.array([0, 7]),
        torch.tensor([2, 3, 5]),
        torch.arange(20) % 3 == 0,
        [index == 11 for index in range(20)],
        6,
    ],
)
def test_a_selection_of_entries_is_a_bank(wanted: Any) -> None:
    names = [f"image {i}" for i in range(20)]
    whole = random_bank(keys=names, labels=range(20), metadata={"layer": "features"})
    parts = WeightBank.concat([random_bank(12, 1), random_bank(8, 2)], keys=names)
    for bank in (whole, parts):
        rows = np.atleast_1d(
            np.arange(20)[np.asarray(wanted) if isinstance(wanted, list) else wanted]
        ).copy()
        selected = bank[wanted]
        assert torch.equal(selected.embeddings, bank.embeddings[rows])
        assert torch.equal(selected.weights, bank.weights[rows])
        assert selected.keys == tuple(names[row] for row in rows)
        assert dict(selected.metadata) == dict(bank.metadata)
    assert whole[wanted].labels is not None
    assert whole[wanted].labels.tolist() == rows.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "selection is empty"),
        (torch.zeros(20, dtype=torch.bool), "selection is empty"),
        ([True] * 19, r"mask .* 19.*20 entries"),
        ([20], "entry 20"),
        (-21, "entry -21"),
        ([0.5], r"\[0\.5\] \(list\)"),
        ("image 3", "str"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([3, 3], "key 'image 3' occurs twice"),
        (None, "NoneType"),
    ],
)
def test_refuses_selections_naming_what_is_wrong(wanted: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_bank(keys=[f"image {i}" for i in range(20)])[wanted]


def test_excluded_entries_are_borrowed_by_no_query() -> None:
    names = [f"image {i}" for i in range(20)]
    bank = random_bank(keys=names, labels=[i % 4 for i in range(20)])
    queries = random_queries()
    for exclude, kept in (
        (["image 3", "image 17"], [i for i in range(20) if i not in (3, 17)]),
        ({2}, [i for i in range(20) if i % 4 != 2]),
        (torch.tensor([0, 3]), [i for i in range(20) if i % 4 in (1, 2)]),
        ((1, "image 0"), [i for i in range(20) if i % 4 != 1 and i != 0]),
        ([], list(range(20))),
    ):
        distances, indices = bank.search(queries, 3, exclude=exclude)
        expected_distances, expected = bank[kept].search(queries, 3)
        assert torch.equal(indices, torch.tensor(kept)[expected])
        assert torch.equal(distances, expected_distances)
        assert torch.equal(
            bank.transfer(queries, 3, exclude=exclude), bank[kept].transfer(queries, 3)
        )


@pytest.mark.parametrize(
    ("exclude", "k", "message"),
    [
        (["image 99"], 1, "no entry has the key 'image 99'"),
        ([7], 1, "no entry has the label 7"),
        ("image 3", 1, r"exclude is 'image 3'; expected a collection"),
        (3, 1, "exclude is 3; expected a collection"),
        ([True], 1, "exclude holds True"),
        ([1.0], 1, r"exclude holds 1\.0"),
        ([0, 1, 2], 6, "k is 6 neighbours; .* 1 to 5, the number of entries .* not excluded"),
        ([0, 1, 2, 3], 1, "all 20 entries are excluded"),
    ],
)
def test_refuses_what_cannot_be_excluded(exclude: Any, k: int, message: str) -> None:
    bank = random_bank(keys=[f"image {i}" for i in range(20)], labels=[i % 4 for i in range(20)])
    with pytest.raises(InputError, match=message):
        bank.transfer(random_queries(), k, exclude=exclude)


def test_keys_and_labels_that_a_bank_does_not_have_cannot_be_excluded() -> None:
    for exclude, message in ((["a"], "bank has no keys"), ([1], "bank has no labels")):
        with pytest.raises(InputError, match=message):
            random_bank().search(random_queries(), exclude=exclude)


@pytest.mark.parametrize("name", ["embeddings", "weights"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_became_nan_are_refused_and_not_borrowed(name: str, value: float) -> None:
    bank, queries = random_bank(keys=[f"image {i}" for i in range(20)]), random_queries()
    bank.transfer(queries, 20)
    getattr(bank, name)[7, 2] = value
    with pytest.raises(BankFileError, match=r"entry 7 \(key 'image 7'\).*NaN or infinite"):
        bank.transfer(queries, 20)
