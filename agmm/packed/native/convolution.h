// Binary 3x3 convolutions of spikes kept as bits.
#pragma once

#include "kernels.h"
#include "memory.h"

namespace agmm {

struct Signs {
    int in_channels, out_channels, out16, stride;
    Array<uint64_t> weights;

    // The largest absolute result.
    int bound(int planes) const { return 9 * in_channels * (planes > 1 ? 4 : 1); }
};

Signs load_signs(const Kernels& kernels, const uint8_t* signs, int out_channels, int in_channels, int stride);

// What one thread needs for a part of a convolution.
struct Windows {
    Array<const uint64_t*> place;
    Array<int32_t> spikes;
    Array<int32_t> room;

    // For so many results at once, of maps of so many words a row.
    void prepare(size_t pixels, size_t row);
};

// Rows first..last of the [steps * height', width', out16] results, written to `out` from the first row's on.
// Where `arrivals` is given, spikes that reach a position of the output are added to it.
void convolve(const Kernels& kernels, const Signs& layer, const uint64_t* bits, const BitMaps& maps, int first,
              int last, Windows& windows, int16_t* out, int64_t* arrivals);

// Zeros around row y of step t; the first and the last row bring the border above and below.
void clear_border(uint64_t* bits, const BitMaps& maps, int t, int y);

}  // namespace agmm
