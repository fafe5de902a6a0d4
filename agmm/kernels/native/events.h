// The gradient of a binary convolution's weights as a sum over spikes.
#pragma once

#include "kernels.h"

namespace agmm::fused {

// What can be summed apart: words of input channels, and bands of padded rows.
struct Extent {
    size_t words, bands;

    explicit Extent(const AgmmEvents& job);
};

struct Range {
    size_t begin, end;
};

// Of a word, of some output channels and bands, into `dweights` of all.
void weight_gradient(
    const Kernels& kernels, const AgmmEvents& job, size_t word, Range outs, Range bands, float* dweights
);

}  // namespace agmm::fused
