"""A model to a file and from the file to classes, by the command line, as a user would."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from agmm.packed import artifact, load, native
from agmm.packed.c import Compiled, find_compiler
from agmm.packed.verify import Differs
from pipelines import cli, export
from pipelines.checkpoints.checkpoint import model_tensors
from pipelines.config import parse_config
from pipelines.data.beton import BetonReader
from pipelines.data.manifest import load_manifest
from pipelines.export import bits
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.network import build_network
from pipelines.pyfunc import Predictor
from pipelines.registry import ModelCard, publish, read_model, write_model
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking


def _agmm(*words):
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


@pytest.fixture
def model(tiny_tree, tmp_path):
    """Writes a model with fresh weights; returns its folder."""

    def write(data=(), classes=("red", "green", "blue"), frames=None, **changes):
        tree = tiny_tree | {"model": tiny_tree["model"] | changes, "data": tiny_tree["data"] | dict(data)}
        config, folder = parse_config(tree, origin="test"), tmp_path / "model"
        folder.mkdir()
        seen = {"classes": list(classes), "frames": frames}
        card = ModelCard(name="tiny", model=config.model, data=config.data, run_id="7", **seen)
        write_model(folder, model_tensors(build_network(config.model)), card)
        return folder

    return write


def test_a_model_is_exported_and_predicts(model, tiny_tree, tmp_path, capsys):
    folder, out = model(), tmp_path / "new" / "net.safetensors"
    assert _agmm("export", folder, "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["compared"] == 21  # all that the validation split has
    assert told["equal_integers"] > 0
    assert told["largest_difference"] < 1e-9
    assert told["size_bytes"] == out.stat().st_size
    network = load(out)
    assert artifact.read(out).digest == told["digest"]
    assert (network.description.name, network.description.classes) == ("tiny", ("red", "green", "blue"))
    assert network.description.source.weights_sha256 == read_model(folder, "").card.weights_sha256
    reader = BetonReader(f"{tiny_tree['data']['uri']}/val.beton")
    images = np.stack([reader.stored(index).reshape(16, 16, 3) for index in range(6)])
    trained = Predictor(read_model(folder, "")).predict(images)
    np.testing.assert_allclose(network(images), trained, atol=1e-4)
    files = [tmp_path / f"{index}.png" for index in range(6)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    assert _agmm("predict", out, *files, "--top", 3, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    names = [row["classes"][0]["name"] for row in rows]
    assert names == [("red", "green", "blue")[best] for best in trained.argmax(1)]
    assert all(sum(its["probability"] for its in row["classes"]) == pytest.approx(1) for row in rows)
    assert all(row["milliseconds"] > 0 and row["sops"] > 0 and row["energy_mj"]["horowitz_45nm"] > 0 for row in rows)
    assert _agmm("predict", out, files[0]) == 0
    assert str(files[0]) in capsys.readouterr().out


def test_without_its_data_a_model_is_compared_on_drawn_inputs(model, tmp_path, capsys):
    folder = model(data={"uri": str(tmp_path / "gone")})
    assert _agmm("export", folder, "--out", tmp_path / "net.safetensors", "--inputs", 5) == 0
    told = capsys.readouterr()
    assert "5 drawn" in told.out
    assert "is not here: comparing on drawn inputs" in told.err


def test_a_model_of_event_frames_is_exported_and_predicts(model, tmp_path, capsys):
    gone = {"uri": str(tmp_path / "gone"), "resolution": 48}
    vgg = {"arch": "agmm_vggsnn", "stem": None, "width": 2, "in_chans": 2, "neuron": {"threshold": 0.1}}
    folder, out = model(data=gone, frames=(2, 2, 48, 48), **vgg), tmp_path / "net.safetensors"
    assert _agmm("export", folder, "--out", out, "--inputs", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal_integers"] > 0
    np.save(tmp_path / "frames.npy", np.random.default_rng(0).poisson(0.3, (2, 2, 48, 48)).astype(np.uint8))
    assert _agmm("predict", out, tmp_path / "frames.npy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["spikes"] > 0
    np.savez(tmp_path / "more.npz", frames=np.zeros(3))
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)})
    for text in ("{'descr': '|u1',", "  {", "(" * 999, "{'descr': 3}"):
        (tmp_path / f"bad{len(text)}.npy").write_bytes(
            b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()
        )
    for name in ("more.npz", "huge.npy", *(path.name for path in tmp_path.glob("bad*"))):
        assert _agmm("predict", out, tmp_path / name) == 2
        assert f"{name} cannot be read as an input" in capsys.readouterr().err


@pytest.mark.skipif(not native.available(), reason="needs compiled kernels: the reference's float64 goes further")
def test_a_network_whose_values_overflow_names_no_class(model, tmp_path, capsys):
    out, image = tmp_path / "net.safetensors", tmp_path / "white.png"
    assert _agmm("export", model(), "--out", out, "--inputs", 1) == 0
    packed = artifact.read(out)
    loud = {name: packed.tensors[name] * np.float32(1e30) for name in ("stem.affine", "head.weight")}
    artifact.write(replace(packed, tensors=dict(packed.tensors) | loud), out)
    Image.new("RGB", (16, 16), "white").save(image)
    assert _agmm("predict", out, image, "--kernels", "portable") == 2
    assert "values overflow in the portable kernels" in capsys.readouterr().err


def test_a_class_cannot_steer_the_terminal(model, tmp_path, capsys):
    out, image = tmp_path / "net.safetensors", tmp_path / "grey.png"
    folder = model(classes=("\x1b[2Jred\x07", "a\nb", "blue\u202e"))
    assert _agmm("export", folder, "--out", out, "--inputs", 1) == 0
    Image.new("RGB", (16, 16)).save(image)
    capsys.readouterr()
    assert _agmm("predict", out, image, "--top", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2Jred\\x07" in lines[1]


def test_the_environment_chooses_kernels(model, tmp_path, monkeypatch, capsys):
    folder, out, image = model(), tmp_path / "net.safetensors", tmp_path / "grey.png"
    monkeypatch.setenv("AGMM_KERNELS", "reference")
    assert _agmm("export", folder, "--out", out, "--inputs", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == "reference"
    Image.new("RGB", (16, 16)).save(image)
    assert _agmm("predict", out, image) == 0
    monkeypatch.setenv("AGMM_KERNELS", "abacus")
    for words in (["export", folder, "--out", tmp_path / "new.safetensors", "--inputs", 1], ["predict", out, image]):
        assert _agmm(*words) == 2
        assert "Unknown kernels 'abacus'. Here are: " in capsys.readouterr().err


def test_without_native_kernels_the_reference_says_so(model, tmp_path, monkeypatch, capsys):
    out, image = tmp_path / "net.safetensors", tmp_path / "grey.png"
    assert _agmm("export", model(), "--out", out, "--inputs", 1) == 0
    Image.new("RGB", (16, 16)).save(image)
    monkeypatch.setattr("agmm.packed.native._kernels._found", "they were not compiled")
    assert _agmm("predict", out, image) == 0
    assert "the reference runs, slowly: they were not compiled" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file/net.safetensors", f"{'long' * 80}.safetensors", "/proc/net.safetensors"])
def test_a_file_that_cannot_be_written_is_told_of_before_the_comparison(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(export, "load_model", None)
    assert _agmm("export", "model", "--out", out) == 1
    assert "Choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words", "code", "said"),
    [
        ({}, ["--out", "net.onnx"], 2, "does not end in .safetensors"),
        ({}, ["--out", "there.safetensors"], 2, "is there already"),
        ({}, ["--out", "x.safetensors", "--data", "nowhere"], 2, "nowhere"),
        ({"method": "full_precision"}, ["--out", "x.safetensors"], 2, "weights are not 1 bit"),
        ({"neuron": {"kind": "relu"}, "time_steps": 1}, ["--out", "x.safetensors"], 2, "does not spike"),
        ({"in_chans": 1}, ["--out", "x.safetensors"], 2, "images of 1 channels, not RGB"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, tmp_path, monkeypatch, capsys, changes, words, code, said):
    folder = model(**changes)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").touch()
    assert _agmm("export", folder, *words) == code
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there.safetensors"]


def test_an_export_that_answers_otherwise_is_not_written(model, tmp_path, monkeypatch, capsys):
    def differ(*_):
        raise Differs("At stages.0.0.conv.")

    monkeypatch.setattr(bits, "verify", differ)
    assert _agmm("export", model(), "--out", tmp_path / "net.safetensors") == 1
    assert "is not exported. At stages.0.0.conv." in capsys.readouterr().err
    assert not (tmp_path / "net.safetensors").exists()


def test_a_full_disk_leaves_no_half_file(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert _agmm("export", model(), "--out", tmp_path / "new" / "net.safetensors", "--inputs", 1) == 1
    assert "free some space" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("artifact", "image", "said"),
    [
        ("net", "missing.png", "missing.png cannot be read"),
        ("net", "text.png", "text.png cannot be read"),
        ("text.png", "text.png", "is no packed network"),
        ("gone", "text.png", "gone cannot be read: No such file"),
    ],
)
def test_what_cannot_be_predicted_is_refused(model, tmp_path, monkeypatch, capsys, artifact, image, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    if artifact == "net":
        assert _agmm("export", model(), "--out", "net.safetensors", "--inputs", 1) == 0
        shutil.move("net.safetensors", "net")
    assert _agmm("predict", artifact, image) == 2
    assert said in capsys.readouterr().err


COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module", params=["agmm_resnet18", "agmm_resnet19"])
def champion(request, tiny_data, tmp_path_factory):
    """A network that was trained, registered and promoted: the demo's in small, and CIFAR's."""
    root = tmp_path_factory.mktemp("champion")
    tree = {
        "name": request.param,
        "data": {"dataset": "tiny", "uri": str(tiny_data), "resolution": 16, "batch_size": 12, "loader": "torch"},
        "model": {"arch": request.param, "num_classes": 3, "width": 8, "time_steps": 2},
        "optim": {"lr": 0.1, "epochs": 6},
        "tracking": {"uri": f"sqlite:///{root / 'mlflow.db'}"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGMM_HOME", str(root / "home"))
        config, store = parse_config(tree, origin="test"), open_store(str(root / "checkpoints"))
        outside = Outside(store, lambda *_: None, lambda _: None, lambda _: None)
        assert run(config, World(0, 1, torch.device("cpu")), outside, tiny_data, "test")["top1"] > 0.5
        client = tracking.connect(config.tracking.uri)
        run_id = tracking.create_run(client, config)
        publish(client, config, load_manifest(tiny_data), run_id, store, request.param)
        client.set_registered_model_alias(request.param, "champion", "1")
    return f"models:/{request.param}@champion", config.tracking.uri


@pytest.mark.skipif(not COMPILER, reason="needs a C compiler")
def test_from_the_registry_to_bits_and_to_c_with_the_same_classes(champion, tiny_data, tmp_path, monkeypatch, capsys):
    uri, server = champion
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bits, source, program = tmp_path / "net.safetensors", tmp_path / "net.c", tmp_path / "net"
    assert _agmm("export", uri, "--to", "packed", "--out", bits) == 0
    capsys.readouterr()
    assert _agmm("export", uri, "--to", "c", "--out", source, "--json") == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["compiled_by"], checked["other_classes_c"]) == (Path(find_compiler()).name, 0)
    assert checked["ram_bytes"] > 0
    assert checked["flash_bytes"] > bits.stat().st_size // 2
    strict = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-DAGMM_MAIN"]
    subprocess.run([COMPILER, *strict, source, "-o", program, "-lm"], check=True)
    reader = BetonReader(tiny_data / "val.beton")
    images = np.stack([reader.stored(index).reshape(16, 16, 3) for index in range(len(reader))])
    trained = mlflow.pyfunc.load_model(uri).predict(images).argmax(1)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index:02d}.png")
    capsys.readouterr()
    assert _agmm("predict", bits, *sorted(tmp_path.glob("*.png")), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    names = load(bits).description.classes
    assert [row["classes"][0]["name"] for row in rows] == [names[best] for best in trained]
    told = subprocess.run([program], input=images.tobytes(), capture_output=True, check=True).stdout.decode()
    assert [int(line.split()[0]) for line in told.splitlines()] == trained.tolist()


def test_c_that_answers_otherwise_is_not_written(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Compiled, "__call__", lambda _, inputs: np.full(len(inputs), -1))
    assert _agmm("export", model(), "--to", "c", "--out", tmp_path / "net.c", "--inputs", 5) == 1
    assert "The compiled C gives 5 of 5 inputs another class" in capsys.readouterr().err
    assert not (tmp_path / "net.c").exists()


def test_without_a_compiler_c_is_written_and_says_that_it_was_not_asked(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert _agmm("export", model(), "--to", "c", "--out", tmp_path / "net.c", "--inputs", 2, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["other_classes_c"] is None
    assert "there is no C compiler here" in told.err


@pytest.mark.parametrize(("kind", "library"), [("onnx", "onnxruntime"), ("nir", "nir")])
def test_other_formats_are_held_against_the_model(model, tmp_path, capsys, kind, library):
    pytest.importorskip(library, reason="needs the extra `export`")
    out = tmp_path / f"net.{kind}"
    assert _agmm("export", model(), "--to", kind, "--out", out, "--inputs", 4, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["size_bytes"] == out.stat().st_size
    assert told["exported"]["inputs"] == 4
    assert told["exported"]["other_class"] == 0


def test_a_library_that_is_missing_is_named_with_its_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nir", None)
    assert _agmm("export", model(), "--to", "nir", "--out", tmp_path / "net.nir", "--inputs", 1) == 2
    assert "pip install '.[export]'" in capsys.readouterr().err


def test_neurobench_measures_on_labelled_inputs_with_the_true_size(model, tmp_path, capsys):
    pytest.importorskip("neurobench", reason="pip install --no-deps neurobench")
    folder, out = model(), tmp_path / "metrics.json"
    assert _agmm("export", folder, "--to", "neurobench", "--out", out, "--inputs", 4, "--json") == 0
    told, written = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    assert told["footprint_bytes"] == written["footprint_bytes"] < written["footprint_bytes_float32"]
    assert 0 <= written["accuracy"] <= 1
