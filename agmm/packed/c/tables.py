"""The constants of a network in C: weights as arrays, the network's shape as a table, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.packed.c.literals import float_array, number, string, word_array
from agmm.packed.c.plan import Map, Plan, words
from agmm.packed.description import POOLED, Block, Description, Neuron
from agmm.packed.reference import unpack_signs

# On a processor of 32 bits: a number or pointer, an entry of `blocks`, and a neuron.
_WORD, _ENTRY, _NEURON = 4, 92, 16


@dataclass
class Tables:
    """Collects arrays, and what they take of the flash memory of a processor of 32 bits."""

    arrays: list[str] = field(default_factory=list)
    flash_bytes: int = 0

    def floats(self, name: str, values: NDArray[Any]) -> str:
        self.arrays.append(float_array(name, values))
        self.flash_bytes += _WORD * values.size
        return name

    def words(self, name: str, values: NDArray[np.uint32]) -> str:
        self.arrays.append(word_array(name, values))
        self.flash_bytes += _WORD * values.size
        return name

    def strings(self, name: str, values: tuple[str, ...]) -> str:
        """An array of strings, as C."""
        literals = [string(value) for value in values]
        self.flash_bytes += sum(_WORD + len(value.encode()) + 1 for value in values)
        body = "".join(f"        {literal},\n" for literal in literals)
        return f"static const char *const {name}[{len(values)}] = {{\n{body}    }};"


def weights(tables: Tables, description: Description, tensors: Mapping[str, NDArray[Any]]) -> None:
    """The arrays of input, stem and head. The stem's weights go [k][k][I][O], its sums run along O."""
    taken = description.input
    frames = (np.ones(taken.channels), np.zeros(taken.channels))
    mean, std = (np.array(taken.mean), np.array(taken.std)) if not taken.frames else frames
    tables.floats("input_scale", frames[0] if taken.frames else 1 / (255 * std))
    tables.floats("input_bias", frames[1] if taken.frames else -mean / std)
    tables.floats("stem_weight", tensors["stem.weight"].transpose(2, 3, 1, 0))
    tables.floats("stem_affine", tensors["stem.affine"])
    tables.floats("head_weight", tensors["head.weight"])
    tables.floats("head_bias", tensors["head.bias"])


def blocks(tables: Tables, description: Description, tensors: Mapping[str, NDArray[Any]], plan: Plan) -> str:
    """The table of blocks and the tail's neuron, as C; their arrays go to `tables`."""
    rows = [
        _entry(tables, number, block, tensors, plan.maps[number : number + 2])
        for number, block in enumerate(description.blocks)
    ]
    tail = description.tail.neuron or description.blocks[-1].neuron  # C has it in any case, and may not use it
    unit = tail.amplitude / (POOLED if description.tail.pool else 1)
    tables.flash_bytes += _ENTRY * len(rows) + _NEURON + _WORD
    return "\n".join(
        [
            "static const struct block blocks[BLOCKS] = {",
            *rows,
            "};",
            "",
            f"static const struct neuron tail_neuron = {_neuron(tail, 'tail')};",
            f"static const float tail_unit = {number(unit, 'tail')};",
        ]
    )


def _entry(
    tables: Tables, number: int, block: Block, tensors: Mapping[str, NDArray[Any]], maps: tuple[Map, ...]
) -> str:
    name, tensor = f"block{number}", f"blocks.{number}"
    pointers = [
        tables.words(f"{name}_signs", _sign_words(tensors[f"{tensor}.signs"], block.in_channels)),
        tables.floats(f"{name}_affine", _affine(tensors[f"{tensor}.affine"], block.unit)),
        tables.floats(f"{name}_alpha", tensors[f"{tensor}.alpha"]) if block.gate != "none" else "NULL",
    ]
    if block.shortcut == "projection":
        weight, affine = tensors[f"{tensor}.shortcut.weight"], tensors[f"{tensor}.shortcut.affine"]
        pointers.append(tables.floats(f"{name}_projection", weight.T))
        pointers.append(tables.floats(f"{name}_shortcut", _affine(affine)))
    kinds = f"{int(block.pool)}, {block.stride}, GATE_{block.gate.upper()}, SHORTCUT_{block.shortcut.upper()}"
    return (
        f"    {{{_map(maps[0])}, {_map(maps[1])}, {_neuron(block.neuron, name)}, {kinds},\n"
        f"     {', '.join([*pointers, 'NULL', 'NULL'][:5])}}},"
    )


def _sign_words(signs_O33B: NDArray[np.uint8], channels: int) -> NDArray[np.uint32]:
    """The 9 * I signs of each output one behind another, in whole words: fewer than a word for each tap would be."""
    outs = len(signs_O33B)
    bits = np.zeros((outs, 32 * words(9 * channels)), np.uint8)
    bits[:, : 9 * channels] = unpack_signs(signs_O33B, channels).reshape(outs, -1) > 0
    return np.packbits(bits, axis=1, bitorder="little").view("<u4")


def _affine(affine_2SO: NDArray[np.float64], unit: float = 1.0) -> NDArray[np.float64]:
    """`[S, 2, O]`, of whole spikes: a step's scales and constants are beside each other."""
    return (affine_2SO * np.array([unit, 1.0])[:, None, None]).swapaxes(0, 1)


def _map(one: Map) -> str:
    return f"{{{one.rows}, {one.columns}, {one.channels}, {one.at}, {one.step}}}"


def _neuron(neuron: Neuron, name: str) -> str:
    values = [number(value, f"{name}'s neuron") for value in (neuron.leak, neuron.threshold, neuron.start)]
    return f"{{{', '.join(values)}, {int(neuron.reset == 'soft')}}}"
