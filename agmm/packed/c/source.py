"""A packed network as one C99 file: the template `network.c.in` with the network's sizes, weights and table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from agmm.packed import artifact as artifacts
from agmm.packed.artifact import Artifact
from agmm.packed.c.literals import comment
from agmm.packed.c.plan import Plan, plan
from agmm.packed.c.tables import Tables, blocks, weights
from agmm.packed.description import Description
from agmm.packed.files import whole

_ARRAYS = re.compile(r"(block\d+|stem|head|input|tail)_\w+|names")
# One word could be a function of the C library, or begin a macro of the file.
_NAME = re.compile(r"classify|(?=.{3,31}$)[a-zA-Z][a-zA-Z0-9]*(_[a-zA-Z0-9]+)+")


@dataclass(frozen=True)
class CSource:
    """A file of C that was written.

    Attributes:
        path: of the file.
        function: its name for `int function(const uint8_t *input)`.
        input_bytes: what the function reads.
        flash_bytes: constants: weights, tables and names. The code adds 3 KB (-Os) to 11 KB (-O2).
        ram_bytes: static memory. The input, and a stack of some hundred bytes, are beside it.

    """

    path: Path
    function: str
    input_bytes: int
    flash_bytes: int
    ram_bytes: int


def write_c(artifact: Artifact, path: Path, function: str = "classify") -> CSource:
    """Write a network as C, whole or not at all.

    Its functions are `function`, `function_logits` and, where the artifact names its classes, `function_name`. Raises
    ValueError for a name that C cannot have or a network that is too large for C, and OSError.
    """
    _check_name(function)
    known = artifacts.from_bytes(artifacts.to_bytes(artifact), artifact.description.name)  # checked, with its digest
    text, source = _source(known, path, function)
    with whole(path) as partial:
        partial.write_text(text, encoding="ascii")
    return source


def _source(artifact: Artifact, path: Path, function: str) -> tuple[str, CSource]:
    description, memory, tables = artifact.description, plan(artifact.description), Tables()
    prefix, frame = function.upper(), _frame_bytes(description)
    weights(tables, description, artifact.tensors)
    table = blocks(tables, description, artifact.tensors, memory)
    names = tables.strings("names", description.classes) if description.classes else ""
    steps = description.time_steps if description.input.frames else 1
    source = CSource(path, function, steps * frame, tables.flash_bytes, memory.ram_bytes)
    text = Template(_template()).substitute(
        head=_head(artifact, source),
        prefix=prefix,
        function=function,
        classes=description.num_classes,
        input_bytes=source.input_bytes,
        input_words="a recording" if description.input.frames else "an image",
        names_declaration=_names_declaration(function) if names else "",
        names=_names(function, prefix, names) if names else "",
        sizes=_sizes(description, memory),
        weights="\n\n".join(tables.arrays),
        tables=table,
    )
    return text, source


def _template() -> str:
    return (resources.files("agmm.packed.c") / "network.c.in").read_text(encoding="ascii")


def _check_name(function: str) -> None:
    code = re.sub(r"/\*.*?\*/", "", _template(), flags=re.DOTALL)
    taken = function in re.findall(r"\w+", code) or _ARRAYS.fullmatch(function)
    if taken or not _NAME.fullmatch(function):
        raise ValueError(
            f"The C function cannot be called {function!r}. Use words of letters and digits, joined by underscores, of "
            "up to 31 characters, that are none of the file's own: classify_digits, for example."
        )


def _frame_bytes(description: Description) -> int:
    return description.input.channels * description.input.height * description.input.width


def _head(artifact: Artifact, source: CSource) -> str:
    """The comment at the top: what this is, what it takes, how it compiles, what it needs."""
    description, function = artifact.description, source.function
    source_model = description.source.model or "not told"
    lines = [
        f"{comment(description.name)}: {comment(description.arch)}, T = {description.time_steps}, "
        f"{description.num_classes} classes. A binary spiking network: its weights and spikes are single bits.",
        f"Made from the artifact with SHA-256 {artifact.digest}; model: {comment(source_model)}.",
        "",
        *_input_words(description),
        "",
        f"Memory: {source.flash_bytes:,} bytes of constants in flash, beside 3 KB (-Os) to 11 KB (-O2) of code;",
        f"{source.ram_bytes:,} bytes of static RAM, beside the input and a stack of some hundred bytes.",
        "No allocation. One call at a time: the functions share that memory.",
        "",
        "Compile: cc -std=c99 -O2 -c FILE.c, and link with -lm. Where other files call the functions, let them say",
        "#define AGMM_DECLARATIONS_ONLY and include this one. As a program that reads raw inputs and prints classes:",
        f"cc -std=c99 -O2 -DAGMM_MAIN FILE.c -o {function} -lm && ./{function} < images.raw",
    ]
    return "\n".join(f" * {line}".rstrip() for line in lines)


def _input_words(description: Description) -> list[str]:
    taken = description.input
    if taken.frames:
        shape = f"[{description.time_steps}][{taken.channels}][{taken.height}][{taken.width}]"
        return [f"Input: counts of events, uint8 {shape}."]
    crop = "" if taken.crop_ratio == 1 else f" times {taken.crop_ratio:g}"
    shape = f"[{taken.height}][{taken.width}][{taken.channels}]"
    return [
        f"Input: an image, uint8 {shape}, row by row. Cut the central square of",
        f"the short side{crop} from a picture and resize it by area; what comes behind is done here.",
    ]


def _sizes(description: Description, memory: Plan) -> str:
    taken, stem, tail = description.input, description.stem, description.tail
    frame = taken.height * taken.width
    sizes = {
        "TIME_STEPS": description.time_steps,
        "AFFINE_STEPS": description.time_steps if description.norm_per_step else 1,
        "BLOCKS": len(description.blocks),
        "INPUT_ROWS": taken.height,
        "INPUT_COLUMNS": taken.width,
        "INPUT_CHANNELS": taken.channels,
        "PLACE_STEP": 1 if taken.frames else taken.channels,
        "CHANNEL_STEP": frame if taken.frames else 1,
        "FRAME_BYTES": _frame_bytes(description),
        "STEM_STEPS": description.time_steps if taken.frames else 1,
        "STEM_ROWS": memory.stem.rows,
        "STEM_COLUMNS": memory.stem.columns,
        "STEM_CHANNELS": stem.channels,
        "STEM_KERNEL": stem.kernel,
        "STEM_STRIDE": stem.stride,
        "MAX_POOL": int(stem.max_pool),
        "TAIL_SPIKES": int(tail.kind == "spikes"),
        "TAIL_POOL": int(tail.pool),
        "GRID": tail.grid,
    }
    arrays = {f"{name}_SIZE": size for name, size in memory.sizes.items() if name != "CLASSES"}
    return "\n".join(f"#define {name} {size}" for name, size in (sizes | arrays).items())


def _names_declaration(function: str) -> str:
    return f"\n/* A class in words, UTF-8. */\nconst char *{function}_name(int which);\n"


def _names(function: str, prefix: str, array: str) -> str:
    return (
        f"\nconst char *{function}_name(int which)\n{{\n    {array}\n"
        f'    return which >= 0 && which < {prefix}_CLASSES ? names[which] : "";\n}}\n'
    )
