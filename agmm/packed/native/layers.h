// A network as the engine holds it: weights repacked for its kernels, padding zero.
#pragma once

#include "api.h"
#include "convolution.h"

namespace agmm {

// Real weights [ceil(out / 32), inputs, 32] with an affine of their own, `steps` of them.
struct Real {
    int inputs, outputs, out16, steps;
    Array<float> weights, scale, bias;

    const float* scale_at(int t) const { return scale.data() + (steps > 1 ? t : 0) * round_up(outputs, kWide); }
    const float* bias_at(int t) const { return bias.data() + (steps > 1 ? t : 0) * round_up(outputs, kWide); }
};

enum class Gate { kNone, kSample, kChannel };
enum class Shortcut { kNone, kIdentity, kProjection };

struct Block {
    Signs signs;
    Neuron neuron;
    bool pool;
    Gate gate;
    Shortcut shortcut;
    int affine_steps;
    std::vector<double> scale, bias, alpha;  // [affine_steps, out], [T]
    Real projection;

    int planes() const { return pool ? 3 : 1; }
};

struct Stem {
    int in_channels, kernel, stride;
    bool max_pool;
    Real convolution;
};

struct Tail {
    bool spikes, pool;
    int grid;
    Neuron neuron;
    float amplitude;
    Real head;
};

struct Layers {
    int steps;
    bool frames;
    Stem stem;
    std::vector<Block> blocks;
    Tail tail;
};

Layers load(const Kernels& kernels, const AgmmNetwork& network);

}  // namespace agmm
