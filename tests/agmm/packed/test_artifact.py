"""The file: the same bytes again, and nothing but a whole one is read."""

import json
import struct
import tracemalloc
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agmm.packed import artifact as artifacts
from agmm.packed.artifact import Refused, from_bytes, read, to_bytes, write
from agmm.packed.pack import NotPackable, pack
from tests.agmm.packed.networks import about, make_network

ZEROS = "0" * 64


@pytest.fixture(scope="module")
def packed():
    return pack(make_network("resnet19"), about("resnet19"))


@pytest.fixture(scope="module")
def content(packed):
    return to_bytes(packed)


def sealed(header, data=b""):
    """A file of that header with a digest that fits, as someone would make it who means harm."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw = struct.pack("<Q", len(text)) + text + data
    return raw.replace(ZEROS.encode(), sha256(raw).hexdigest().encode(), 1)


def metadata(**changes):
    head = {"format": "agmm-packed", "version": 1, "sha256": ZEROS} | changes
    return {"__metadata__": {"agmm_packed": json.dumps(head)}}


def test_an_artifact_comes_back_as_it_was(packed, tmp_path):
    written = write(packed, tmp_path / "new" / "net.safetensors")
    again = read(tmp_path / "new" / "net.safetensors")
    assert again.description == packed.description
    assert written.digest == again.digest
    assert written.size == again.size == (tmp_path / "new" / "net.safetensors").stat().st_size
    for name, tensor in packed.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.safetensors"]


def test_the_same_network_gives_the_same_bytes(content):
    assert to_bytes(pack(make_network("resnet19"), about("resnet19"))) == content


def test_weights_take_one_bit_each(packed):
    signs = [tensor for name, tensor in packed.tensors.items() if name.endswith("signs")]
    blocks = packed.description.blocks
    assert sum(its.nbytes for its in signs) == sum(b.out_channels * 9 * -(-b.in_channels // 8) for b in blocks)


def test_a_thousand_changed_bytes_are_refused(content):
    generator = np.random.default_rng(0)
    places = np.concatenate([np.arange(400), generator.integers(400, len(content), 600)])
    for place, flip in zip(places, generator.integers(1, 256, len(places)), strict=True):
        changed = bytearray(content)
        changed[place] ^= int(flip)
        with pytest.raises(Refused, match=r"net\.safetensors"):
            from_bytes(bytes(changed), "net.safetensors")


def test_two_hundred_truncations_are_refused(content):
    ends = np.random.default_rng(1).integers(0, len(content), 190)
    for end in (*range(10), *ends):
        with pytest.raises(Refused):
            from_bytes(content[:end], "net.safetensors")
    with pytest.raises(Refused, match="SHA-256"):
        from_bytes(content + b"\0", "net.safetensors")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "no packed network"),
        (sealed(metadata(version=2)), "version 2; this program reads 'agmm-packed' version 1"),
        (sealed(metadata(format="other")), "format 'other'"),
        (sealed(metadata()), "describes no network"),
        (sealed(metadata(network={"name": "x", "run": "os.system"})), "describes no network"),
        (sealed(metadata(format="\x1b[2J" * 9999)), r"format '\\x1b.{0,999}$"),
        (sealed(metadata(network={"\x1b[2J\n": 1})), "describes no network"),
        (sealed(metadata() | {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, b"1234"), "no safe"),
        (sealed(metadata() | {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]}}, b"1234"), "no safe"),
        (sealed(metadata() | {"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"), "no safe"),
        (
            sealed(b'{"__metadata__":{"agmm_packed":"{\\"sha256\\": \\"' + b"0" * 64 + b'\\"' + b"[" * 99999 + b'"}}'),
            "no",
        ),
    ],
)
def test_a_hostile_file_is_refused_with_a_reason(file, said):
    with pytest.raises(Refused, match=said) as refused:
        from_bytes(file, "net.safetensors")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("depth", [100, 199, 210, *range(900, 1000, 3), 9999])
def test_no_nesting_of_a_header_ends_in_another_error(depth):
    inner = f'{{"sha256": "{ZEROS}", "format": "agmm-packed", "version": 1, "network": {"[" * depth}{"]" * depth}}}'
    with pytest.raises(Refused):
        from_bytes(sealed({"__metadata__": {"agmm_packed": inner}}), "net.safetensors")


def test_a_header_of_any_size_costs_no_more_than_itself():
    """60 MB of tensors that are not there would take 2 GB to parse."""
    empty = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}
    file = sealed(metadata() | empty)
    tracemalloc.start()
    with pytest.raises(Refused, match=r"header of .* at most 4194304"):
        from_bytes(file, "net.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"input": {"mean": [1e308, 0.5, 0.5]}},
        {"input": {"std": [1e-300, 0.5, 0.5]}},
        {"neuron": {"start": 1 - 1e-12}},  # in float32 that is the threshold
    ],
)
def test_numbers_that_float32_has_not_are_refused(packed, change):
    tree = json.loads(packed.description.model_dump_json())
    tree["input"] |= change.get("input", {})
    tree["blocks"][0]["neuron"] |= change.get("neuron", {})
    with pytest.raises(Refused, match="describes no network"):
        from_bytes(with_description(packed, tree), "net.safetensors")


def with_description(packed, tree):
    head = {"format": "agmm-packed", "version": 1, "sha256": ZEROS, "network": tree}
    content = artifacts.save(dict(packed.tensors), metadata={"agmm_packed": json.dumps(head)})
    return content.replace(ZEROS.encode(), sha256(content).hexdigest().encode(), 1)


@pytest.mark.parametrize("change", [{"height": 1 << 14, "width": 1 << 14}, {"height": 1 << 12, "width": 1 << 12}])
def test_a_small_file_cannot_ask_for_memory_without_bound(packed, change):
    """Of an image's size the tensors say nothing: it is bounded by what the layers come to."""
    tree = json.loads(packed.description.model_dump_json())
    tree["input"] |= change
    with pytest.raises(Refused, match="values over all steps"):
        from_bytes(with_description(packed, tree), "net.safetensors")


def test_what_the_description_does_not_name_is_refused(packed):
    def refused(said, **tensors):
        with pytest.raises(Refused, match=said):
            to_bytes(replace(packed, tensors=dict(packed.tensors) | tensors))

    refused("must be F32", **{"head.bias": np.zeros(5)})
    refused("NaN or values", **{"head.bias": np.full(5, np.nan, np.float32)})
    refused("that float32 does not have", **{"blocks.0.alpha": np.full(2, 1e39)})
    signs = packed.tensors["blocks.0.signs"].copy()
    signs[..., -1] |= 0x80
    refused("padding bits", **{"blocks.0.signs": signs})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_description_with_any_value_changed_is_refused_or_another_network(packed, data):
    """No value of the header crashes the reader, or gets past it with tensors that do not fit."""
    tree = json.loads(packed.description.model_dump_json())
    places = [(node, key) for node in _nodes(tree) for key in node]
    node, key = data.draw(st.sampled_from(places))
    odd = st.sampled_from([None, -1, 0, 1 << 62, 1e308, "x", "", [], {}, True, 0.5, "nan", [[]]])
    node[key] = data.draw(odd)
    try:
        came = from_bytes(with_description(packed, tree), "net.safetensors").description
    except Refused:
        return
    assert came.shapes() == packed.description.shapes()


def _nodes(tree):
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, (1 << 64) - 1))
def test_random_headers_are_refused(noise, size):
    for file in (noise, struct.pack("<Q", size) + noise, struct.pack("<Q", len(noise)) + noise):
        with pytest.raises(Refused):
            from_bytes(file, "net.safetensors")


def test_a_file_too_large_is_not_read(tmp_path):
    huge = tmp_path / "huge"
    with huge.open("wb") as out:
        out.truncate(artifacts.LARGEST + 1)
    with pytest.raises(Refused, match="at most"):
        read(huge)


def test_a_disk_that_is_full_leaves_nothing(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write(packed, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"method": "full_precision"}, "not 1 bit"), ({"neuron": "relu"}, "does not spike"), ({"num_classes": 0}, "head")],
)
def test_a_network_without_bits_is_refused(changes, said):
    import agmm.models as models

    arguments = {"depths": (1, 1), "width": 8, "num_classes": 5} | changes
    with pytest.raises(NotPackable, match=said):
        pack(models.create_model("agmm_resnet19", **arguments), about("resnet19"))


def test_a_network_past_the_limits_of_the_format_is_refused():
    with pytest.raises(NotPackable, match=r"no packed form: .*at most 4096 characters"):
        pack(make_network("resnet19"), replace(about("resnet19"), name="x" * 5000))
