"""Files that were damaged or edited are refused; those of earlier versions are read."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from captum_embed.errors import BankFileError
from captum_embed.weight_bank import WeightBank

from .conftest import assert_equal, flip_a_bit, make_bank, rewrite, shard, truncate


def test_a_bank_of_version_2_loads(saved: Path) -> None:
    def to_version_2(manifest: dict[str, Any]) -> None:
        manifest["version"] = 2
        del manifest["top_channels"]
        for record in manifest["shards"]:
            del record["dropped"]

    rewrite(saved, to_version_2)
    assert_equal(WeightBank.load(saved), make_bank())
    WeightBank.drop_from(saved, [2])
    assert_equal(WeightBank.load(saved), make_bank()[make_bank().labels != 2])


def test_a_bank_of_version_1_loads_and_explains_the_loss(saved: Path) -> None:
    def to_version_1(manifest: dict[str, Any]) -> None:
        manifest["version"] = 1
        del manifest["explains"], manifest["layout"]
        for number, record in enumerate(manifest["shards"], 1):
            file = f"bank-{number:05d}-of-00003.safetensors"
            (saved / record["file"]).rename(saved / file)
            record["file"] = file

    rewrite(saved, to_version_1)
    old = WeightBank.load(saved)
    assert old.metadata["explains"] == "loss"
    assert "layout" not in old.metadata
    old.save(saved)
    assert_equal(WeightBank.load(saved), old)
    assert not list(saved.glob("*-of-*"))


SHARD = r"bank-[0-9a-f]{16}\.safetensors"


def lengthen(path: Path) -> None:
    with shard(path).open("ab") as file:
        file.write(b"\0")


def swap(path: Path) -> None:
    shard(path, 0).rename(path / "other")
    shard(path, 1).rename(shard(path, 0))
    (path / "other").rename(shard(path, 1))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shard(path).unlink(), f"{SHARD} is missing"),
        (truncate, rf"{SHARD} is truncated: it has \d+ bytes of \d+"),
        (lengthen, f"{SHARD} was altered"),
        (flip_a_bit, f"{SHARD} was altered: its SHA-256"),
        (swap, f"{SHARD} was altered"),
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


@settings(max_examples=int(os.environ.get("BANK_FLIPS", 60)), deadline=None)
@given(st.data())
def test_no_single_byte_of_any_file_can_change_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("banks") / "bank"
    make_bank(3).save(path)
    file = path / data.draw(st.sampled_from(sorted(os.listdir(path))))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    byte = (content[place] + data.draw(st.integers(1, 255))) % 256
    # One blank of the manifest is as good as another.
    assume(not (chr(byte).isspace() and chr(content[place]).isspace()))
    content[place] = byte
    file.write_bytes(content)
    with pytest.raises(BankFileError, match=file.name):
        WeightBank.load(path)


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.__setitem__(name, value)


def set_shard(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["shards"][1].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("version", 4), "format version 4.*reads 1 to 3; upgrade"),
        (set_field("version", True), "format version True"),
        (set_field("explains", 3), "'explains' is 3"),
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
        (lambda m: m["shards"].append(m["shards"][0]), "announces 10 entries, .* hold 14"),
        (set_shard("file", "../bank-0123456789abcdef.safetensors"), r"names the shard '\.\./bank"),
        (set_shard("file", "/etc/bank-0123456789abcdef.safetensors"), "names the shard '/etc"),
        (set_shard("file", "..\\bank-0123456789abcdef.safetensors"), "names the shard"),
        (set_shard("file", "bank-0123456789abcdef.safetensors\n"), "names the shard"),
        (set_shard("file", "bank-0123456789abcdef.pt"), "names the shard"),
        (set_shard("file", "bank-0123456789abcdef.safetensors"), "not named after its SHA-256"),
        (set_shard("sha256", "0" * 64), "not named after its SHA-256"),
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
    tensors = {name: tensor.clone() for name, tensor in load_file(shard(path)).items()}
    change(tensors)
    put_shard(path, save(tensors))


def named_as_the_first(keys: torch.Tensor) -> torch.Tensor:
    first = "".join(f"vogel/größe {i}.jpg" for i in range(len(keys) // 18)).encode()
    return torch.tensor(list(first))


def put_shard(path: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    name = f"bank-{digest[:16]}.safetensors"
    shard(path).rename(path / name).write_bytes(content)
    record = {"file": name, "num_bytes": len(content), "sha256": digest}
    rewrite(path, lambda manifest: manifest["shards"][1].update(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("weights"), "should be"),
        (lambda t: t.pop("keys"), "should be"),
        (lambda t: t.update(more=torch.zeros(1)), "should be"),
        (lambda t: t.update(labels=t["labels"].int()), "should be"),
        (lambda t: t["key_ends"].add_(1), "its keys do not add up"),
        (lambda t: t["key_ends"][-1:].sub_(1), "its keys do not add up"),
        (lambda t: t["key_ends"].copy_(t["key_ends"].flip(0)), "its keys do not add up"),
        (lambda t: t["keys"].fill_(255), "a key is not text"),
        (lambda t: t["key_ends"].fill_(len(t["keys"])), "key '' is not a name"),
        (lambda t: t["keys"].copy_(named_as_the_first(t["keys"])), "key .* occurs twice"),
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
    put_shard(saved, pickle.dumps({"weights": [1.0]}))
    with pytest.raises(BankFileError, match=f"{SHARD} is not a readable safetensors file"):
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
