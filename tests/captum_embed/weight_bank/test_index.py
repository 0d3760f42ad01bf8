"""A bank searched through FAISS: its answers are those of exact search, its files are checked."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import nn

from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank
from captum_embed.errors import InputError, MissingExtraError
from captum_embed.weight_bank import IndexedBank
from captum_embed.weight_bank import index as index_module
from captum_embed.weight_bank.faiss_index import FaissIndex

# With these an index looks at everything.
THOROUGH: dict[str, dict[str, int]] = {
    "flat": {},
    "ivf": {"nlist": 5, "nprobe": 5},
    "hnsw": {"ef_search": 500},
}


def bank_of(count: int, dim: int = 8, dtype: torch.dtype = torch.float32) -> WeightBank:
    generator = torch.Generator().manual_seed(count)
    embeddings = torch.randn(count, dim, generator=generator).to(dtype)
    weights = torch.randn(count, 3, generator=generator)
    keys = [f"k{i}" for i in range(count)]
    return WeightBank(embeddings, weights, torch.arange(count) % 4, keys)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_thorough_index_answers_as_exact_search_does(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(THOROUGH)))
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    offset = data.draw(st.sampled_from([0.0, 300.0]))
    count = data.draw(st.integers(1, 60))
    exact = bank_of(count, data.draw(st.integers(1, 5)), dtype)
    exact.embeddings.add_(offset)
    # Copies, of which the first ones are wanted.
    copies = data.draw(st.lists(st.integers(0, count - 1), max_size=30))
    exact.embeddings[copies] = exact.embeddings[data.draw(st.integers(0, count - 1))].clone()
    exclude = data.draw(st.sampled_from([None, ["k0"], [1, 2, "k0"]])) if count > 8 else None
    k = data.draw(st.integers(1, max(1, count // 2 - 2)))
    # In double precision: entries that differ are at distances that differ.
    queries = exact.embeddings[:7].double()
    queries += 0.2 * torch.randn(queries.shape, dtype=torch.float64)
    indexed = IndexedBank(exact, kind, progress=False, **THOROUGH[kind])
    distances, indices = indexed.search(queries, k, exclude=exclude)
    expected, nearest = exact.search(queries, k, exclude=exclude)
    torch.testing.assert_close(distances, expected, rtol=0, atol=0)
    assert torch.equal(indices, nearest)


@pytest.mark.parametrize("kind", sorted(THOROUGH))
def test_an_index_is_saved_beside_the_bank_and_read_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, path = bank_of(300), tmp_path / "birds.bank"
    bank.save(path)
    built = IndexedBank(bank, kind, path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "birds.bank",
        f"birds.bank.{kind}.safetensors",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(FaissIndex, "build", None)
        read = IndexedBank(WeightBank.load(path), kind, path, progress=False)
    queries = torch.randn(50, 8)
    for excluded in (None, [2]):
        for one, other in zip(
            built.search(queries, 4, exclude=excluded),
            read.search(queries, 4, exclude=excluded),
            strict=True,
        ):
            assert torch.equal(one, other)


def test_an_index_is_built_again_where_embeddings_or_settings_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, path, builds = bank_of(40), tmp_path / "bank", []
    build = FaissIndex.build
    monkeypatch.setattr(FaissIndex, "build", lambda *a: builds.append(1) or build(*a))
    counts = []
    for embeddings, options in (
        (bank.embeddings, {}),
        (bank.embeddings, {"ef_search": 9}),  # Of the search alone.
        (bank.embeddings, {"m": 8}),
        (bank.embeddings + 0.01, {"m": 8}),
        (bank.embeddings + 0.01, {"m": 8}),
    ):
        other = WeightBank(embeddings, torch.rand(40, 5))
        indexed = IndexedBank(other, "hnsw", path, progress=False, **options)
        assert torch.equal(indexed.search(embeddings)[1][:, 0], torch.arange(40))
        counts.append(len(builds))
    assert counts == [1, 1, 2, 3, 3]
    # Changed in place, at the next search.
    moved = indexed.embeddings.flip(0).clone()
    indexed.embeddings.copy_(moved)
    assert torch.equal(indexed.search(moved)[1][:, 0], torch.arange(40))
    assert len(builds) == 4


def damaged(arrays: dict[str, np.ndarray], kind: str, how: str) -> dict[str, np.ndarray]:
    changed = {name: array.copy() for name, array in arrays.items()}
    if how == "outside":
        changed["list_of" if kind == "ivf" else "neighbors"][3] = 10**6
    elif how == "negative":
        changed["list_of" if kind == "ivf" else "neighbors"][3] = -2
    elif how == "levels":
        changed["levels"][changed["levels"].argmax()] += 1
    elif how == "upper":
        # A neighbour on a level where it does not stand has no room there.
        tall = int(changed["levels"].argmax())
        start = int((32 + 16 * (changed["levels"][:tall] - 1)).sum()) + 32
        changed["neighbors"][start] = int((changed["levels"] == 1).argmax())
    elif how == "entry":
        changed["entry_point"][0] = int((changed["levels"] == 1).argmax())
    else:
        changed["centroids"][0, 0] = np.nan
    return changed


def content(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("ivf", how) for how in ("outside", "negative", "nan")),
        *(("hnsw", how) for how in ("outside", "negative", "levels", "upper", "entry")),
    ],
)
def test_arrays_that_would_lead_faiss_astray_are_not_given_to_it(
    kind: str, how: str, tmp_path: Path
) -> None:
    bank, file = bank_of(300), tmp_path / f"bank.{kind}.safetensors"
    IndexedBank(bank, kind, tmp_path / "bank", progress=False)
    with index_module.safe_open(file, framework="numpy") as opened:
        about = opened.metadata()
    arrays = damaged(load_file(file), kind, how)
    # As someone would write it who knows the checksum.
    save_file(arrays, file, metadata={**about, "content": content(arrays)})
    with pytest.warns(UserWarning, match=r"damaged.*built again"):
        indexed = IndexedBank(bank, kind, tmp_path / "bank", progress=False)
    assert torch.equal(indexed.search(bank.embeddings)[1][:, 0], torch.arange(300))
    IndexedBank(bank, kind, tmp_path / "bank", progress=False)


def test_a_file_that_was_cut_off_or_changed_is_written_again(tmp_path: Path) -> None:
    bank, file = bank_of(60), tmp_path / "bank.ivf.safetensors"
    IndexedBank(bank, "ivf", tmp_path / "bank", progress=False)
    whole = file.read_bytes()
    for content in (whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"no tensors"):
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="was damaged"):
            IndexedBank(bank, "ivf", tmp_path / "bank", progress=False)
        assert len(file.read_bytes()) == len(whole)


def test_what_a_killed_build_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    old, young = (tmp_path / f".bank.hnsw.safetensors.{one}.unfinished" for one in ("a", "b"))
    for file in (old, young):
        file.write_text("half")
    os.utime(old, (0, 0))
    IndexedBank(bank_of(20), "hnsw", tmp_path / "bank", progress=False).search(torch.rand(1, 8))
    assert not old.exists()
    assert young.exists()
    assert (tmp_path / "bank.hnsw.safetensors").exists()


def test_queries_that_get_too_few_entries_or_are_far_away_are_searched_exactly() -> None:
    exact = bank_of(200)
    indexed = IndexedBank(exact, "ivf", progress=False, nlist=20, nprobe=1)
    queries = torch.cat([exact.embeddings[:3], 1e9 * torch.randn(2, 8), torch.randn(4, 8)])
    for k, exclude in ((60, None), (20, [0, 1, 2])):
        expected = exact.search(queries, k, exclude=exclude)
        assert torch.equal(indexed.search(queries, k, exclude=exclude)[1], expected[1])
    # The index proposes for the first three, and not for the others.
    for some in (queries[3:5], queries[:5], queries[[3, 0, 4, 1]]):
        for answer, expected_answer in zip(indexed.search(some), exact.search(some), strict=True):
            assert torch.equal(answer, expected_answer)
    assert indexed.search(queries[:0], 3)[1].shape == (0, 3)


def test_maps_and_neighbors_of_an_indexed_bank_are_those_of_the_bank() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    exact = bank_of(50, 3)
    images = torch.rand(4, 3, 8, 8)
    cams = [
        EmbeddingLayerGradCam(TripletForward(encoder), encoder[0], weight_bank=bank)
        for bank in (exact, IndexedBank(exact, "hnsw", progress=False, ef_search=50))
    ]
    options = {"num_neighbors": 3, "exclude": [1, "k3"]}
    one, other = (cam.attribute(images, **options) for cam in cams)  # type: ignore[arg-type]
    assert torch.equal(one, other)
    keys = [cam.neighbors(images, **options).keys for cam in cams]  # type: ignore[arg-type]
    assert keys[0] == keys[1]
    # What is made of it has no index.
    assert type(cams[1].weight_bank[:9]) is WeightBank  # type: ignore[index]


def test_what_cannot_work_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    bank = bank_of(9)
    with pytest.raises(InputError, match="expected one of flat, ivf, hnsw"):
        IndexedBank(bank, "annoy")
    with pytest.raises(InputError, match="no setting 'nprobe'; it has m, ef_construction"):
        IndexedBank(bank, "hnsw", nprobe=3)
    for wrong in (0, 1.5, True):
        with pytest.raises(InputError, match="nprobe is"):
            IndexedBank(bank, "ivf", nprobe=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be written beside the bank"):
        IndexedBank(bank, "flat", tmp_path / "nowhere" / "bank")


def test_a_missing_faiss_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install faiss-cpu"):
        IndexedBank(bank_of(9), "flat")
