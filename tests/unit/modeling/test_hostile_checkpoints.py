"""`mobilebert convert` refuses a checkpoint that was made to do harm, in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilebert.modeling.foreign import bundle
from mobilebert.modeling.foreign.bundle import Bundle
from mobilebert.modeling.foreign.convert import convert
from mobilebert.modeling.foreign.kinds import kind_of
from mobilebert.modeling.weight_files import convert_pickle
from mobilebert.util.errors import UserError

GOLDEN = Path(__file__).with_name("from_tensorflow")


def copy(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def refused(folder: Path) -> str:
    """Return the error of a conversion, which must write nothing."""
    out = folder.parent / "out"
    with pytest.raises(UserError) as error:
        convert(str(folder), out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    return str(error.value)


# ---- tf_model.h5


@pytest.mark.parametrize("kind", ["external", "link", "virtual", "bomb"])
def test_an_h5_file_gives_only_what_lies_inside_it(kind, tmp_path):
    h5py = pytest.importorskip("h5py")
    folder, other = copy("encoder", tmp_path), tmp_path / "other.h5"
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        group = file["mobilebert"]
        name = next(name for name in group.attrs["weight_names"])
        shape = group[name].shape
        del group[name]
        with h5py.File(other, "w") as secret:
            secret["x"] = np.full(shape, 9, np.float32)
        if kind == "external":
            group.create_dataset(name, shape, "f4", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
        elif kind == "link":
            group[name] = h5py.ExternalLink(str(other), "x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(other), "x", shape)
            group.create_virtual_dataset(name, layout)
        else:
            group.create_dataset(name, (10**7, 10**7), "f4", chunks=(1000, 1000), compression="gzip")
    wanted = "larger than the file" if kind == "bomb" else "lies in another file; only weights inside the file are read"
    assert wanted in refused(folder)


def test_two_weights_of_keras_with_one_name_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = copy("encoder", tmp_path)
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        group = file["mobilebert"]
        names = list(group.attrs["weight_names"])
        second = names[0].replace(":0", ":1")
        group[second] = np.zeros(group[names[0]].shape, np.float32)
        group.attrs["weight_names"] = [*names, second]
    assert "two of its variables are " in refused(folder)


# ---- the index of Google's checkpoint


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """Return a field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Return a block of LevelDB's table, and the trailer with its checksum."""
    content = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries)
    content += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    crc = bundle._crc32c(content + b"\0")
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return content, b"\0" + masked.to_bytes(4, "little")


def entry(variable, shape: bytes | None = None, **changed: int | bytes) -> bytes:
    """Return the entry of a variable, some fields of which are changed."""
    sizes = b"".join(field(2, field(1, size)) for size in variable.shape)
    values = {name: changed.get(name, getattr(variable, name)) for name in ("type", "shard", "offset", "size")}
    return (
        field(1, values["type"])
        + field(2, sizes if shape is None else shape)
        + field(3, values["shard"])
        + field(4, values["offset"])
        + field(5, values["size"])
    )


WORDS = "bert/embeddings/word_embeddings"


def google(tmp_path: Path, header=None, words=None, more=()) -> Path:
    """Return a copy of Google's checkpoint with another index.

    words: changes to the entry of the word embeddings. more: names, and the variable that each is.
    """
    folder = copy("google-student", tmp_path)
    prefix = folder / "mobilebert_variables.ckpt"
    variables = Bundle(prefix).variables
    entries = [(b"", field(1, 1) if header is None else header)]
    entries += [(name.encode(), entry(value, **(words or {} if name == WORDS else {}))) for name, value in variables.items()]
    entries += [(name.encode(), entry(variables[like])) for name, like in more]
    content, trailer = block(entries)
    handles, end = block([(b"\xff", varint(0) + varint(len(content)))])
    footer = varint(0) + varint(0) + varint(len(content) + len(trailer)) + varint(len(handles))
    prefix.with_name(prefix.name + ".index").write_bytes(
        content + trailer + handles + end + footer.ljust(40, b"\0") + bundle.MAGIC.to_bytes(8, "little")
    )
    return folder


def test_the_index_that_these_tests_write_is_read(tmp_path):
    convert(str(google(tmp_path)), tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


def test_two_variables_of_google_with_one_name_are_refused(tmp_path):
    folder = google(tmp_path, more=[(WORDS, WORDS)])
    assert "word_embeddings' twice" in refused(folder)
    shutil.rmtree(folder)
    name = "bert/encoder/layer_0/attention/output/FakeLayerNorm/beta"
    folder = google(tmp_path, more=[(name.replace("Fake", ""), name)])
    assert "attention.output.LayerNorm.bias; only one can be read" in refused(folder)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({"shape": field(2, field(1, 2**63))}, "bytes, which are not those of its shape"),
        ({"shape": field(2, field(1, 2**64 - 1)) * 2}, "bytes, which are not those of its shape"),
        ({"shape": field(2, field(1, 2**32)) * 2, "size": 0}, "bytes, which are not those of its shape"),
        ({"shape": field(2, field(1, b"a"))}, "damaged, or no index"),
        ({"shape": field(2, field(1, 1)) * 99}, "has 99 dimensions"),
        ({"shape": field(2, field(1, 0)) + field(2, field(1, 2**64 - 1)), "size": 0}, "holds no values"),
        ({"type": 7, "size": 0}, "(number 7) that cannot be read"),
        ({"type": b"ab"}, "damaged, or no index"),
        ({"offset": b"abc"}, "damaged, or no index"),
        ({"offset": 2**64 - 8}, "too short"),
        ({"shard": b"abc"}, "damaged, or no index"),
        ({"shard": 2**64 - 1}, "missing, though the index names it"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_odd_index_is_refused(words, wanted, tmp_path):
    assert wanted in refused(google(tmp_path, words=words))


def test_names_and_blocks_that_take_hours_are_refused(tmp_path, monkeypatch):
    folder = google(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "MOST_NAMES", 3)
        assert "more than 3 names" in refused(folder)
    empty, trailer = block([])
    handles, end = block([(b"a", varint(0) + varint(len(empty))), (b"b", varint(0) + varint(len(empty)))])
    footer = varint(0) + varint(0) + varint(len(empty + trailer)) + varint(len(handles))
    content = empty + trailer + handles + end + footer.ljust(40, b"\0") + bundle.MAGIC.to_bytes(8, "little")
    (folder / "mobilebert_variables.ckpt.index").write_bytes(content)
    assert "its blocks overlap" in refused(folder)


def test_an_index_with_an_odd_header_is_refused(tmp_path):
    assert "damaged, or no index" in refused(google(tmp_path, header=field(1, b"ab")))


def test_a_changed_byte_of_the_data_is_found(tmp_path):
    folder = copy("google-student", tmp_path)
    data = folder / "mobilebert_variables.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[Bundle(folder / "mobilebert_variables.ckpt").variables[WORDS].offset + 3] ^= 1
    data.write_bytes(content)
    assert f"damaged: the checksum of {WORDS} does not hold" in refused(folder)


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 50001])
def test_the_checksum_of_many_bytes_is_that_of_each_in_turn(size):
    content = np.random.default_rng(size).bytes(size)
    assert bundle.crc32c(content) == bundle._crc32c(content)
    assert bundle.crc32c(b"123456789") == 0xE3069283


# ---- pickles and shards


@pytest.mark.parametrize("kind", ["h5", "bin"])
@pytest.mark.parametrize("name", ["../x.{}", "a/b.{}", "", ".", "..", "a\0.{}", "x" * 300 + ".{}", "x.{}\n"])
def test_an_index_names_only_files_beside_it(name, kind, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    index = folder / {"h5": "tf_model.h5.index.json", "bin": "pytorch_model.bin.index.json"}[kind]
    index.write_text(json.dumps({"weight_map": {"a": name.format(kind)}}))
    assert f"allowed: .{kind} files in the same folder" in refused(folder)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02}q", b"", b"PK\3\4aaaa", b"\x80\x02Na."])
def test_a_damaged_pickle_is_refused(content, tmp_path):
    folder = tmp_path / "pickle"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "truncated, or holds more than weights" in refused(folder)
    with pytest.raises(UserError, match="not a pickle of weights alone"):
        convert_pickle(folder / "pytorch_model.bin", tmp_path / "x.safetensors", "x")


TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "conjugate": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
    "meta": lambda: torch.zeros(3, device="meta"),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore")  # of PyTorch, that it will drop quantized tensors
def test_a_tensor_that_numpy_lacks_is_refused(kind, tmp_path):
    folder = tmp_path / "pickle"
    folder.mkdir()
    torch.save({"mobilebert.a": TENSORS[kind]()}, folder / "pytorch_model.bin")
    assert "mobilebert.a is a tensor (" in refused(folder)


def test_an_expanded_tensor_is_refused(tmp_path):
    folder = tmp_path / "pickle"
    folder.mkdir()
    torch.save({"mobilebert.a": torch.zeros(1).expand(10**7, 10**7)}, folder / "pytorch_model.bin")
    assert "mobilebert.a claims more values than the file holds" in refused(folder)


# ---- configurations and names


@pytest.mark.parametrize(
    ("base", "changed", "wanted"),
    [
        ("google-student", {"hidden_act": []}, "hidden_act: [] is unknown"),
        ("google-student", {"vocab_size": 2**62}, "the configuration makes no model"),
        ("encoder-safetensors", {"architectures": 5}, "architectures in the configuration is 5; allowed: a list of names"),
        ("encoder-safetensors", {"architectures": [[1]]}, "allowed: a list of names"),
        ("encoder-safetensors", {"hidden_size": 2**40}, "the configuration makes no model"),
    ],
)
def test_an_odd_configuration_is_refused(base, changed, wanted, tmp_path):
    folder = copy(base, tmp_path)
    file = folder / ("bert_config.json" if base.startswith("google") else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert wanted in refused(folder)


def test_a_null_num_labels_is_none_at_all(tmp_path):
    folder = copy("encoder-safetensors", tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_labels": None}))
    convert(str(folder), tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


def test_names_of_a_checkpoint_are_printed_on_one_line_and_cut(tmp_path):
    more = [("zz\x1b[31mRED\nmobilebert: all is well", WORDS), *((f"zz{place:03d}", WORDS) for place in range(200))]
    lines = convert(str(google(tmp_path, more=more)), tmp_path / "out")
    assert all(line.isprintable() and len(line) < 600 + 200 + len(str(tmp_path)) for line in lines)
    assert "zz [31mRED mobilebert: all is well" in "".join(lines)


@pytest.mark.parametrize("name", ["bert_config.json", "mobilebert_variables.ckpt.index"])
def test_a_huge_configuration_or_index_is_not_read(name, tmp_path):
    folder = copy("google-student", tmp_path)
    with (folder / name).open("r+b") as stream:
        stream.truncate((64 << 20) + 1)
    assert "at most 67,108,864 are read" in refused(folder)


@pytest.mark.parametrize("text", ["[1, 2]", '{"loss": NaN}', "{", "\udcff"])
def test_an_odd_json_file_for_something_else_is_passed_over(text, tmp_path):
    folder = copy("google-student", tmp_path)
    (folder / "all_results.json").write_text(text, errors="surrogateescape")
    convert(str(folder), tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()
    (folder / "bert_config.json").write_text(text, errors="surrogateescape")
    shutil.rmtree(tmp_path / "out")
    assert "bert_config.json" in refused(folder)


def test_config_chooses_between_two_configurations(tmp_path):
    folder = copy("google-student", tmp_path)
    shutil.copy(folder / "bert_config.json", folder / "second.json")
    assert "2 configurations, as bert_config.json; choose one with --config" in refused(folder)
    convert(str(folder), tmp_path / "out", None, folder / "second.json")


def test_an_index_of_another_program_is_no_checkpoint(tmp_path):
    folder = copy("google-student", tmp_path)
    (folder / "faiss.index").write_text("x")
    assert kind_of(folder) == "google"
    convert(str(folder), tmp_path / "out")
    other = tmp_path / "pickle"
    other.mkdir()
    (other / "faiss.index").write_text("x")
    torch.save({}, other / "pytorch_model.bin")
    assert kind_of(other) == "pickle"


def test_a_weight_that_stands_in_two_shards_is_refused(tmp_path):
    name = "embeddings.LayerNorm.bias"
    shards = [f"pytorch_model-{number}.bin" for number in (1, 2)]
    for value, shard in enumerate(shards):
        torch.save({name: torch.full((2,), float(value))}, tmp_path / shard)
    index = {"weight_map": {name: shards[0], "other": shards[1]}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "mobilebert"}')
    assert f"two of its variables are {name}" in refused(tmp_path)
