// What every path offers: four passes over part of a tensor, and sums over spikes.
#pragma once

#include <cstddef>

#include "api.h"

namespace agmm::fused {

constexpr size_t kWide = 512;      // channels of a part, at most, where channels come last
constexpr size_t kMostSteps = 32;  // T

struct Shape {
    size_t steps, batch, channels, pixels;
    bool last, stream;  // stream: results go past the caches, in whole lines

    size_t step() const { return batch * channels * pixels; }
    size_t coefficients() const { return batch * channels; }
};

// Some channels of one sample, at all steps.
struct Part {
    size_t sample, begin, end;
};

constexpr size_t kWordBits = 64, kTaps = 9;

struct Kernels {
    const char* name;
    void (*moments)(const Shape&, const AgmmCounts&, double* sums, Part);
    void (*forward)(const Shape&, const AgmmNeuron&, const AgmmForward&, Part);
    void (*backward)(const Shape&, const AgmmNeuron&, const AgmmBackward&, Part);
    void (*affine)(const Shape&, const AgmmAffine&, Part);
    void (*add_taps)(
        const float* grads, size_t columns, const uint32_t* places, size_t count, const float* all, float* sums
    );
    size_t tile;  // output channels at a time
};

// The path of that name; null where it is unknown or unsupported.
const Kernels* find_kernels(const char* name);
// Names of the paths that this machine can run, best first, separated by spaces.
const char* kernel_names();

}  // namespace agmm::fused
