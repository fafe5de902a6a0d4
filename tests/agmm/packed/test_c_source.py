"""The C of every kind of network, compiled without a warning, under sanitizers, against the reference.

C computes in float32, the reference in float64: a membrane within rounding of its threshold may spike in one and not in
the other, and the logits then differ by more than rounding. Such an image must have such a membrane, and be rare.
"""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from agmm.packed import reference
from agmm.packed.artifact import Artifact
from agmm.packed.c import write_c
from agmm.packed.c.literals import comment, string
from agmm.packed.pack import pack
from tests.agmm.packed.networks import NETWORKS, about, any_artifact, make_network

COMPILER = shutil.which("cc")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wtrigraphs"]
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FIRE = reference.fire
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


def compiled(program, *sources, flags=SANITIZED):
    command = [COMPILER, *STRICT, *flags, *map(str, sources), "-o", str(program), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    assert not done.stderr
    return program


def answers(program, raw, *arguments):
    """The lines that a program prints of raw inputs, as numbers."""
    done = subprocess.run([program, *arguments], input=raw.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    return np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()])


def draw(description, count, seed=3):
    """Raw inputs `[B, H, W, C]` or `[B, T, C, H, W]`, and as the reference takes them."""
    taken, generator = description.input, np.random.default_rng(seed)
    if taken.frames:
        shape = (count, description.time_steps, taken.channels, taken.height, taken.width)
        raw = generator.poisson(0.3, shape).astype(np.uint8)
        return raw, np.moveaxis(raw, 2, -1)
    # Patches of one brightness: what is drawn for each pixel alone averages out in the stem, and few neurons fire.
    coarse = generator.integers(0, 256, (count, -(-taken.height // 3), -(-taken.width // 3), taken.channels))
    raw = coarse.repeat(3, 1).repeat(3, 2)[:, : taken.height, : taken.width].astype(np.uint8)
    return np.ascontiguousarray(raw), (raw / 255.0 - taken.mean) / taken.std


def truth(artifact, images, monkeypatch):
    """The reference's logits `[B, K]`, how near a membrane came to its threshold `[B]`, and what fired."""
    nearest = np.full(len(images), np.inf)

    def fire(neuron, x_T):
        nonlocal nearest
        spikes, v = FIRE(neuron, x_T), neuron.start
        for x, spike in zip(x_T, spikes, strict=True):
            u = neuron.leak * v + x
            nearest = np.minimum(nearest, np.abs(u - neuron.threshold).min(axis=(1, 2, 3)))
            v = np.where(spike, 0.0, u) if neuron.reset == "hard" else u - neuron.threshold * spike
        return spikes

    monkeypatch.setattr(reference, "fire", fire)
    logits, counts = reference.run(artifact.description, artifact.tensors, images)
    return logits, nearest, counts


def check(artifact, program, count, monkeypatch, most, seed=3):
    """Logits within 1e-3 and the same classes, but for `most` images that a membrane on its threshold decides."""
    raw, images = draw(artifact.description, count, seed)
    theirs, nearest, counts = truth(artifact, images, monkeypatch)
    ours = answers(program, raw, "logits")
    tie = np.diff(np.sort(theirs, axis=1)[:, -2:], axis=1)[:, 0] < 1e-3
    other = (ours.argmax(1) != theirs.argmax(1)) & ~tie
    differs = (np.abs(ours - theirs).max(1) > 1e-3) | other
    assert (nearest[differs] < 2e-6).all()
    assert differs.sum() <= most
    assert (answers(program, raw)[:, 0] == ours.argmax(1)).all()
    return counts


@pytest.mark.parametrize("name", NETWORKS)
def test_c_answers_as_the_reference(name, tmp_path, monkeypatch):
    artifact = pack(make_network(name), about(name))
    source = write_c(artifact, tmp_path / "network.c")
    program = compiled(tmp_path / "network", source.path, flags=[*SANITIZED, "-DAGMM_MAIN"])
    counts = check(artifact, program, 8, monkeypatch, most=1)
    assert all(0 < fired < neurons for fired, neurons in zip(counts.spikes, counts.neurons, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_c_answers_as_the_reference_whatever_a_description_combines(seed, tmp_path, monkeypatch):
    artifact = any_artifact(seed)
    source = write_c(artifact, tmp_path / "network.c")
    program = compiled(tmp_path / "network", source.path, flags=[*SANITIZED, "-DAGMM_MAIN"])
    check(artifact, program, 4, monkeypatch, most=1)


HOSTILE = (
    '"; exit(1); "',
    "*/ int stolen; /*",
    "??/\n#error a line of its own ??) \\",
    "%s\a\x7f\r\0end",
    "für 猫 \u202e\u2028 1",
    "\\",
    "9" * 4096,
)
TWO_NETWORKS = """
#define AGMM_DECLARATIONS_ONLY
#include "first_digits.c"
#include "of_letters.c"
#include <stdio.h>

static void show(const float *logits, int count)
{
    for (int k = 0; k < count; k++)
        printf("%.9g%s", (double)logits[k], k + 1 < count ? "\\t" : "\\n");
}

int main(int arguments, char **argument)
{
    static uint8_t input[FIRST_DIGITS_BYTES];
    float first[FIRST_DIGITS_CLASSES], second[OF_LETTERS_CLASSES];
    (void)argument;
    for (int k = -1; k <= OF_LETTERS_CLASSES && arguments > 1; k++)
        printf("%s\\f", of_letters_name(k));
    while (fread(input, 1, sizeof input, stdin) == sizeof input) {
        first_digits_logits(input, first);
        of_letters_logits(input, second);
        show(first, FIRST_DIGITS_CLASSES);
        show(second, OF_LETTERS_CLASSES);
    }
    return 0;
}
"""


def hostile(name):
    artifact = pack(make_network(name), about(name))
    said = replace(about(name), name=HOSTILE[1] + HOSTILE[2], arch=HOSTILE[3] + HOSTILE[4], classes=HOSTILE[:5])
    description = artifact.description.model_copy(update={"name": said.name, "arch": said.arch})
    return Artifact(description.model_copy(update={"classes": said.classes}), artifact.tensors)


def test_two_networks_with_hostile_names_are_one_program(tmp_path, monkeypatch):
    networks = {"first_digits": pack(make_network("vanilla"), about("vanilla")), "of_letters": hostile("channel_gate")}
    sources = [write_c(network, tmp_path / f"{name}.c", name).path for name, network in networks.items()]
    (tmp_path / "main.c").write_text(TWO_NETWORKS)
    program = compiled(tmp_path / "both", tmp_path / "main.c", *sources)
    raw, images = draw(networks["first_digits"].description, 4)
    lines = subprocess.run([program], input=raw.tobytes(), capture_output=True, check=True).stdout.splitlines()
    ours = np.array([[float(value) for value in line.split()] for line in lines])
    for number, network in enumerate(networks.values()):
        assert np.abs(ours[number::2] - truth(network, images, monkeypatch)[0]).max() < 1e-3
    said = subprocess.run([program, "names"], input=b"", capture_output=True, check=True).stdout.split(b"\f")
    assert said == [b"", *(name.split("\0")[0].encode() for name in HOSTILE[:5]), b"", b""]


@pytest.mark.parametrize("text", [*HOSTILE, '"' * 4096, "猫" * 4096, "\ud800", ""])
def test_no_text_ends_a_comment_or_a_string(text, tmp_path):
    content = f"/*\n * {comment(text)}\n */\nconst char *text = {string(text)};\nconst char *text;\n"
    (tmp_path / "text.c").write_text(content, encoding="ascii")
    compiled(tmp_path / "text.o", tmp_path / "text.c", flags=["-c"])


@pytest.mark.skipif(shutil.which("size") is None or shutil.which("nm") is None, reason="needs size and nm")
@pytest.mark.parametrize("name", ["odd", "resnet18", "vggsnn"])
def test_flash_and_memory_are_as_told_and_little_is_needed(name, tmp_path):
    source = write_c(pack(make_network(name), about(name)), tmp_path / "network.c")
    made = compiled(tmp_path / "network.o", source.path, flags=["-O2", "-c"])
    figures = subprocess.run(["size", made], capture_output=True, text=True, check=True).stdout.splitlines()[1].split()
    text, data, static = (int(figure) for figure in figures[:3])
    assert 0 < text + data - source.flash_bytes < 12_000  # the code, and tables of 64-bit pointers
    assert abs(static - source.ram_bytes) < 512  # alignment; arrays of a kind that the network has not
    missing = subprocess.run(["nm", "-u", made], capture_output=True, text=True, check=True).stdout.split()
    assert set(missing) - {"U"} <= {"expf", "memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert f"{source.flash_bytes:,} bytes of constants" in source.path.read_text()
    assert f"{source.ram_bytes:,} bytes of static RAM" in source.path.read_text()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "2nd",
        "a b",
        "int",
        "main",
        "stem",
        "block0_signs",
        "x*/",
        "é",
        "a_" * 15 + "ab",
        "memcpy",
        "sin",
        "frame",
        "_x_y",
    ],
)
def test_a_name_that_c_cannot_have_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="classify_digits"):
        write_c(any_artifact(0), tmp_path / "network.c", name)
    assert not list(tmp_path.iterdir())


def test_a_network_that_float32_cannot_hold_leaves_the_file_as_it_was(tmp_path):
    artifact, path = any_artifact(0), tmp_path / "network.c"
    write_c(artifact, path)
    before = path.read_text()
    artifact.tensors["blocks.1.affine"][0, 0, 0] = 1e38
    block = artifact.description.blocks[1]
    loud = block.model_copy(update={"neuron": block.neuron.model_copy(update={"amplitude": 1e3})})
    blocks = (artifact.description.blocks[0], loud, *artifact.description.blocks[2:])
    described = artifact.description.model_copy(update={"blocks": blocks})
    with pytest.raises(ValueError, match="block1_affine has values beyond float32"):
        write_c(Artifact(described, artifact.tensors), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_past_the_limits_of_the_format_is_refused(tmp_path):
    artifact = any_artifact(0)
    large = artifact.description.input.model_copy(update={"height": 1 << 14, "width": 1 << 14})
    described = artifact.description.model_copy(update={"input": large})
    with pytest.raises(ValueError, match="values over all steps"):
        write_c(Artifact(described, artifact.tensors), tmp_path / "network.c")


def test_half_an_image_is_an_error_of_the_program(tmp_path):
    source = write_c(any_artifact(0), tmp_path / "network.c")
    program = compiled(tmp_path / "network", source.path, flags=["-O0", "-DAGMM_MAIN"])
    done = subprocess.run([program], input=bytes(source.input_bytes + 1), capture_output=True)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert f"The last input has 1 bytes of {source.input_bytes}." in done.stderr.decode()


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
@pytest.mark.parametrize("name", ["resnet18", "vggsnn"])
def test_clang_has_no_warning_either(name, tmp_path):
    source = write_c(pack(make_network(name), about(name)), tmp_path / "network.c")
    command = ["clang", *STRICT, "-O2", "-c", source.path, "-o", tmp_path / "network.o"]
    assert not subprocess.run(command, capture_output=True, check=True).stderr


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["-O2"], ["-O3", "-march=native"]])
def test_a_thousand_images(flags, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "large", ("agmm_resnet19", {"width": 32, "num_steps": 2}, (32, 32, 3)))
    artifact = pack(make_network("large"), about("large"))
    source = write_c(artifact, tmp_path / "network.c")
    program = compiled(tmp_path / "network", source.path, flags=[*flags, "-DAGMM_MAIN"])
    for seed in range(20):
        check(artifact, program, 50, monkeypatch, most=5, seed=seed)
