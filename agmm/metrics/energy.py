"""The energy of an inference, under named conventions that say what an operation costs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Convention:
    """Picojoules of one multiply-accumulate, one accumulation (a spike that arrives), and one byte of weights read."""

    mac: float
    sop: float
    weight_byte: float = 0.0


# Horowitz, "Computing's energy problem", ISSCC 2014, 45 nm, 0.9 V: float32 multiplication 3.7 pJ, addition 0.9 pJ; a
# 64-bit read from a 1 MB SRAM 100 pJ, from DRAM 1.3 to 2.6 nJ, of which the lower end is taken. The rows with memory
# assume a batch of one image whose weights are read once per layer and time step; membranes, spikes and other
# activations stay on the chip and are not counted.
CONVENTIONS = {
    "horowitz_45nm": Convention(mac=4.6, sop=0.9),
    "paper_table2": Convention(mac=1.69, sop=0.38),  # what reproduces the energies of the paper's Tab. 2
    "horowitz_45nm_sram": Convention(mac=4.6, sop=0.9, weight_byte=100 / 8),
    "horowitz_45nm_dram": Convention(mac=4.6, sop=0.9, weight_byte=1300 / 8),
}


def energy_mj(macs: float, sops: float, weight_bytes: float = 0.0) -> dict[str, float]:
    """Millijoules by convention: E_MAC * MACs + E_AC * SOPs, and where it has one the cost of reading weights."""
    return {
        name: (cost.mac * macs + cost.sop * sops + cost.weight_byte * weight_bytes) * 1e-9
        for name, cost in CONVENTIONS.items()
    }
