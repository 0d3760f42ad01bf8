import hashlib
import json
import os
import pickle
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import captum_embed.weight_bank.storage as storage
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank import WeightBank

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make_bank(count: int = 10, seed: int = 0, **arguments: Any) -> WeightBank:
    generator = torch.Generator().manual_seed(seed)
    defaults = {
        "labels": [i % 3 for i in range(count)],
        "keys": [f"vogel/größe {i}.jpg" for i in range(count)],
        "metadata": {"layer": "features", "encoder_fingerprint": "ab" * 32, "seed": "0"},
    }
    return WeightBank(
        torch.randn(count, 4, generator=generator),
        torch.randn(count, 6, generator=generator),
        **{**defaults, **arguments},
    )


def assert_equal(one: WeightBank, other: WeightBank) -> None:
    assert torch.equal(one.embeddings, other.embeddings)
    assert torch.equal(one.weights, other.weights)
    assert one.embeddings.dtype == other.embeddings.dtype
    assert one.weights.dtype == other.weights.dtype
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None and other.labels is not None:
        assert torch.equal(one.labels, other.labels)
    assert one.keys == other.keys
    assert dict(one.metadata) == dict(other.metadata)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bank of three shards."""
    path = tmp_path / "bank"
    make_bank().save(path, max_shard_size=350)
    assert len(list(path.glob("*.safetensors"))) == 3
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edits a manifest and makes its checksum right, as a forger would."""
    content = json.loads((path / "manifest.json").read_text())
    del content["checksum"]
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    shard=st.integers(1, 500),
    dtype=st.sampled_from(DTYPES),
    labels=st.booleans(),
    keys=st.none() | st.integers(0, 5),
    mmap=st.booleans(),
    verify=st.booleans(),
)
def test_a_bank_comes_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    shard: int,
    dtype: torch.dtype,
    labels: bool,
    keys: int | None,
    mmap: bool,
    verify: bool,
) -> None:
    bank = make_bank(
        count,
        labels=list(range(-1, count - 1)) if labels else None,
        keys=None if keys is None else [f"{'né' * keys}{i}" for i in range(count)],
        metadata={},
    ).to(dtype)
    path = tmp_path_factory.mktemp("banks") / "bank"
    bank.save(path, max_shard_size=shard)
    assert_equal(WeightBank.load(path, mmap=mmap, verify=verify), bank)


def test_metadata_and_manifest_say_what_the_bank_is(saved: Path) -> None:
    assert dict(WeightBank.load(saved).metadata) == dict(make_bank().metadata)
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format"] == "captum_embed.weight_bank"
    assert manifest["version"] == 1
    assert manifest["layer"] == "features"
    assert manifest["encoder_fingerprint"] == "ab" * 32
    assert (manifest["num_entries"], manifest["embedding_dim"], manifest["num_channels"]) == (
        10,
        4,
        6,
    )
    assert manifest["library_versions"]["torch"] == torch.__version__.split("+")[0] or (
        manifest["library_versions"]["torch"] == torch.__version__
    )
    for shard in manifest["shards"]:
        content = (saved / shard["file"]).read_bytes()
        assert shard["num_bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
    assert [shard["file"] for shard in manifest["shards"]] == [
        f"bank-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]


def test_any_reader_of_safetensors_can_read_a_shard(saved: Path) -> None:
    tensors = load_file(saved / "bank-00001-of-00003.safetensors")
    count = len(tensors["embeddings"])
    assert torch.equal(tensors["embeddings"], make_bank().embeddings[:count])
    ends = tensors["key_ends"].tolist()
    text = bytes(tensors["keys"].tolist())
    assert text[ends[0] : ends[1]].decode() == "vogel/größe 1.jpg"


def test_shards_of_a_loaded_bank_search_and_transfer_as_the_whole(saved: Path) -> None:
    bank, loaded = make_bank(), WeightBank.load(saved)
    queries = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(loaded.search(queries, 6), bank.search(queries, 6), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(loaded.transfer(queries, 3), bank.transfer(queries, 3))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_mmap_leaves_the_entries_in_the_files_and_otherwise_nothing_stays_mapped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bank"
    WeightBank(torch.randn(1000, 64), torch.randn(1000, 256)).save(path)
    in_memory = WeightBank.load(path, mmap=False)
    assert str(path) not in Path("/proc/self/maps").read_text()
    mapped = WeightBank.load(path, mmap=True)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert_equal(mapped, in_memory)


def test_a_bank_can_be_saved_over_the_files_it_is_mapped_from(saved: Path) -> None:
    WeightBank.load(saved).save(saved)
    assert_equal(WeightBank.load(saved), make_bank())
    assert sorted(os.listdir(saved)) == ["bank-00001-of-00001.safetensors", "manifest.json"]
    assert os.listdir(saved.parent) == ["bank"]


def test_embeddings_that_are_the_weights_can_be_saved(tmp_path: Path) -> None:
    both = torch.randn(4, 3)
    bank = WeightBank(both, both)
    bank.save(tmp_path / "bank")
    assert_equal(WeightBank.load(tmp_path / "bank"), bank)


def test_files_are_as_readable_as_the_user_asked_for(saved: Path) -> None:
    (saved.parent / "plain").write_text("")
    expected = stat.S_IMODE((saved.parent / "plain").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in saved.iterdir()} == {expected}


def test_missing_folders_on_the_way_are_made(tmp_path: Path) -> None:
    make_bank().save(tmp_path / "runs" / "today" / "bank")
    assert len(WeightBank.load(tmp_path / "runs" / "today" / "bank")) == 10


def test_a_link_to_a_bank_is_followed(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved)
    make_bank(3, seed=5).save(link)
    assert link.is_symlink()
    assert len(WeightBank.load(saved)) == 3


@pytest.mark.parametrize(
    ("size", "shards"), [("1GB", 1), ("0.35KB", 3), ("350", 3), (1, 10), ("1 mb", 1)]
)
def test_shard_size_is_bytes_or_a_string(tmp_path: Path, size: Any, shards: int) -> None:
    make_bank().save(tmp_path / "bank", max_shard_size=size)
    assert len(list(tmp_path.glob("bank/*.safetensors"))) == shards


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "large", "-1GB", "", None])
def test_refuses_shard_sizes_that_are_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(InputError, match="max_shard_size is"):
        make_bank().save(tmp_path / "bank", max_shard_size=size)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("failing", ["save_file", "_sha256", "_flush_to_disk"])
def test_a_save_that_fails_leaves_nothing_new_and_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    exists: bool,
    error: BaseException,
) -> None:
    path = tmp_path / "bank"
    earlier = make_bank(4, seed=9)
    if exists:
        earlier.save(path)
    real, calls = getattr(storage, failing), []

    def fail_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(storage, failing, fail_at_the_second)
    with pytest.raises(type(error)):
        make_bank().save(path, max_shard_size=350)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["bank"] if exists else [])
    if exists:
        assert_equal(WeightBank.load(path), earlier)


def test_a_save_that_fails_between_the_renames_puts_the_earlier_bank_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank"
    make_bank(4).save(path)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".unfinished"):
            raise OSError("no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        make_bank().save(path)
    assert os.listdir(tmp_path) == ["bank"]
    assert len(WeightBank.load(path)) == 4


def test_the_earlier_bank_of_a_killed_save_is_named(saved: Path) -> None:
    saved.rename(saved.with_name(".bank.0123abcd.previous"))
    with pytest.raises(BankFileError, match=r"interrupted save left .*\.bank\.0123abcd\.previous"):
        WeightBank.load(saved)


def test_refuses_to_overwrite_what_is_not_a_bank(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    foreign = tmp_path / "website"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "a web app"}')
    mixed = tmp_path / "mixed"
    make_bank().save(mixed)
    (mixed / "notes.txt").write_text("precious")
    for path, message in (
        (file, "is a file"),
        (folder, "notes.txt"),
        (foreign, "not an intact weight bank"),
        (mixed, "notes.txt"),
    ):
        with pytest.raises(InputError, match=message):
            make_bank().save(path)
    assert file.read_text() == (folder / "notes.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "mixed", "website"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    make_bank().save(tmp_path / "bank")
    assert len(WeightBank.load(tmp_path / "bank")) == 10


SECOND = "bank-00002-of-00003.safetensors"


def truncate(path: Path) -> None:
    content = (path / SECOND).read_bytes()
    (path / SECOND).write_bytes(content[: len(content) // 2])


def lengthen(path: Path) -> None:
    with (path / SECOND).open("ab") as file:
        file.write(b"\0")


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / SECOND).read_bytes())
    content[-3] ^= 1
    (path / SECOND).write_bytes(content)


def swap(path: Path) -> None:
    first = path / "bank-00001-of-00003.safetensors"
    first.rename(path / "other")
    (path / SECOND).rename(first)
    (path / "other").rename(path / SECOND)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / SECOND).unlink(), f"{SECOND} is missing"),
        (truncate, rf"{SECOND} is truncated: it has \d+ bytes of \d+"),
        (lengthen, f"{SECOND} was altered"),
        (flip_a_bit, f"{SECOND} was altered: its SHA-256"),
        (swap, "bank-0000[12]-of-00003.safetensors was altered"),
        (lambda path: (path / "manifest.json").unlink(), "no manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[" * 10**5), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[]"), "not the manifest of a weight"),
        (lambda path: (path / "manifest.json").write_text('{"format": 3}'), "not the manifest"),
    ],
)
def test_damaged_files_are_named(
    saved: Path, damage: Callable[[Path], None], message: str, mmap: bool
) -> None:
    damage(saved)
    with pytest.raises(BankFileError, match=message):
        WeightBank.load(saved, mmap=mmap)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_single_byte_of_any_file_can_change_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("banks") / "bank"
    make_bank(3).save(path)
    file = path / data.draw(st.sampled_from(sorted(os.listdir(path))))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255))
    if chr(byte).isspace() and chr(content[place]).isspace():
        return
    same = content[place] == byte
    content[place] = byte
    file.write_bytes(content)
    if same:
        assert len(WeightBank.load(path)) == 3
        return
    with pytest.raises(BankFileError, match=file.name):
        WeightBank.load(path)


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.__setitem__(name, value)


def set_shard(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["shards"][1].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("version", 2), "format version 2.*reads 1; upgrade"),
        (set_field("version", "1"), "format version '1'"),
        (set_field("version", None), "format version None"),
        (set_field("num_entries", 11), "announces 11 entries, and its shards hold 10"),
        (set_field("num_entries", True), "'num_entries' is True"),
        (set_field("embedding_dim", 5), r"holds .*should be"),
        (set_field("num_channels", 5), r"holds .*should be"),
        (set_field("num_channels", -6), "'num_channels' is -6"),
        (set_field("embedding_dtype", "float64"), r"holds .*should be"),
        (set_field("weight_dtype", 3), "'weight_dtype' is 3"),
        (set_field("has_labels", False), r"holds .*should be"),
        (set_field("has_keys", False), r"holds .*should be"),
        (set_field("has_keys", "yes"), "'has_keys' is 'yes'"),
        (set_field("layer", 3), "'layer' is 3"),
        (set_field("metadata", {"seed": 3}), "'metadata' is"),
        (set_field("metadata", None), "'metadata' is None"),
        (set_field("shards", []), r"'shards' is \[\]"),
        (set_field("shards", "all"), "'shards' is 'all'"),
        (set_field("shards", [3]), "names the shard None"),
        (lambda m: m["shards"].append(m["shards"][0]), "lists a shard twice"),
        (set_shard("file", "../bank-00002-of-00003.safetensors"), r"names the shard '\.\./bank"),
        (set_shard("file", "/etc/bank-00002-of-00003.safetensors"), "names the shard '/etc"),
        (set_shard("file", "..\\bank-00002-of-00003.safetensors"), "names the shard"),
        (set_shard("file", "bank-00002-of-00003.safetensors\n"), "names the shard"),
        (set_shard("file", "bank-00002-of-00003.pt"), "names the shard"),
        (set_shard("file", None), "names the shard None"),
        (set_shard("num_bytes", "1"), "record of shard .* is incomplete"),
        (set_shard("num_entries", 0), "record of shard .* is incomplete"),
        (set_shard("sha256", None), "record of shard .* is incomplete"),
    ],
)
def test_an_edited_manifest_is_refused_even_with_a_right_checksum(
    saved: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(saved, lambda manifest: None)
    WeightBank.load(saved)
    rewrite(saved, change)
    with pytest.raises(BankFileError, match=message):
        WeightBank.load(saved)


def test_an_edited_manifest_is_refused_for_its_checksum(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"features"', '"another"'))
    with pytest.raises(BankFileError, match=r"manifest\.json was altered: its checksum"):
        WeightBank.load(saved)


def replace_shard(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Writes another second shard, with a right record of it in the manifest."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path / SECOND).items()}
    change(tensors)
    save_file(tensors, path / SECOND)
    content = (path / SECOND).read_bytes()
    rewrite(path, set_shard("num_bytes", len(content)))
    rewrite(path, set_shard("sha256", hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("weights"), "should be"),
        (lambda t: t.pop("keys"), "should be"),
        (lambda t: t.update(more=torch.zeros(1)), "should be"),
        (lambda t: t.update(labels=t["labels"].int()), "should be"),
        (lambda t: t["key_ends"].add_(1), "its keys do not add up"),
        (lambda t: t["key_ends"].copy_(t["key_ends"].flip(0)), "its keys do not add up"),
        (lambda t: t["keys"].fill_(255), "a key is not text"),
        (lambda t: t["weights"][1].fill_(torch.nan), "weights in .* row 5, hold NaN"),
    ],
)
def test_shards_of_other_content_are_refused_even_with_right_checksums(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    replace_shard(saved, lambda tensors: None)
    WeightBank.load(saved)
    replace_shard(saved, change)
    with pytest.raises(BankFileError, match=message):
        WeightBank.load(saved)


def test_a_shard_that_is_no_safetensors_file_is_named(saved: Path) -> None:
    content = pickle.dumps({"weights": [1.0]})
    (saved / SECOND).write_bytes(content)
    rewrite(saved, set_shard("num_bytes", len(content)))
    with pytest.raises(BankFileError, match=f"{SECOND} is not a readable safetensors file"):
        WeightBank.load(saved, verify=False)


def test_without_verification_the_bytes_are_not_read(saved: Path) -> None:
    flip_a_bit(saved)
    assert len(WeightBank.load(saved, verify=False)) == 10


def test_absent_banks_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BankFileError, match=r"there is no directory .*nowhere"):
        WeightBank.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BankFileError, match=r"there is no directory .*file"):
        WeightBank.load(tmp_path / "file")


def test_nothing_is_pickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    WeightBank.load(saved).save(saved)
    assert_equal(WeightBank.load(saved, mmap=False), make_bank())
    sources = Path(sys.modules["captum_embed.weight_bank"].__file__ or "").parent.glob("*.py")
    assert not [file for file in sources if "import pickle" in file.read_text()]
