#include "layers.h"

namespace agmm {
namespace {

// weight: [outputs, inputs] with inputs in any order: order(k) is the place of the k-th.
template <typename Order>
Real load_real(const float* weight, int outputs, int inputs, Order order) {
    Real real{inputs, outputs, (int)round_up(outputs, kGroup), 1, {}, {}, {}};
    real.weights.resize(round_up(outputs, kWide) * inputs);
    for (int o = 0; o < outputs; ++o) {
        for (int k = 0; k < inputs; ++k) {
            const size_t at = ((size_t)(o / kWide) * inputs + k) * kWide + o % kWide;
            real.weights[at] = weight[(size_t)o * inputs + order(k)];
        }
    }
    return real;
}

Real load_real(const float* weight, int outputs, int inputs) {
    return load_real(weight, outputs, inputs, [](int k) { return k; });
}

// affine: [2, steps, outputs]
void set_affine(Real& real, const double* affine, int steps) {
    const size_t wide = round_up(real.outputs, kWide), count = (size_t)steps * real.outputs;
    real.steps = steps;
    real.scale.resize(steps * wide);
    real.bias.resize(steps * wide);
    for (size_t i = 0; i < count; ++i) {
        const size_t at = i / real.outputs * wide + i % real.outputs;
        real.scale[at] = (float)affine[i];
        real.bias[at] = (float)affine[count + i];
    }
}

Neuron load_neuron(const AgmmNeuron& neuron) { return {neuron.threshold, neuron.leak, neuron.start, neuron.hard}; }

// Windows are read row by row, channels innermost: [k, k, in] of [in, k, k].
Stem load_stem(const AgmmStem& stem) {
    const int taps = stem.kernel * stem.kernel, inputs = taps * stem.in_channels;
    const auto order = [&](int k) { return k % stem.in_channels * taps + k / stem.in_channels; };
    Stem loaded{stem.in_channels, stem.kernel, stem.stride, stem.max_pool != 0,
                load_real(stem.weight, stem.channels, inputs, order)};
    set_affine(loaded.convolution, stem.affine, 1);
    return loaded;
}

Block load_block(const Kernels& kernels, const AgmmBlock& block, int steps) {
    Block loaded{load_signs(kernels, block.signs, block.out_channels, block.in_channels, block.stride),
                 load_neuron(block.neuron),
                 block.pool != 0,
                 (Gate)block.gate,
                 (Shortcut)block.shortcut,
                 block.affine_steps,
                 {},
                 {},
                 {},
                 {}};
    const size_t count = (size_t)block.affine_steps * block.out_channels;
    loaded.scale.assign(block.affine, block.affine + count);
    loaded.bias.assign(block.affine + count, block.affine + 2 * count);
    if (loaded.gate != Gate::kNone) loaded.alpha.assign(block.alpha, block.alpha + steps);
    if (loaded.shortcut == Shortcut::kProjection) {
        loaded.projection = load_real(block.shortcut_weight, block.out_channels, block.in_channels);
        set_affine(loaded.projection, block.shortcut_affine, block.affine_steps);
    }
    return loaded;
}

Tail load_tail(const AgmmTail& tail, int channels) {
    const int features = channels * tail.grid * tail.grid;
    Tail loaded{tail.spikes != 0,         tail.pool != 0, tail.grid,
                load_neuron(tail.neuron), tail.amplitude, load_real(tail.weight, tail.classes, features)};
    std::vector<double> affine(2 * (size_t)tail.classes, 1.0);
    for (int k = 0; k < tail.classes; ++k) affine[tail.classes + k] = tail.bias[k];
    set_affine(loaded.head, affine.data(), 1);
    return loaded;
}

}  // namespace

Layers load(const Kernels& kernels, const AgmmNetwork& network) {
    Layers layers{network.steps, network.frames != 0, load_stem(network.stem), {}, {}};
    layers.blocks.reserve(network.blocks);
    for (int i = 0; i < network.blocks; ++i) {
        layers.blocks.push_back(load_block(kernels, network.block[i], network.steps));
    }
    layers.tail = load_tail(network.tail, layers.blocks.back().signs.out_channels);
    return layers;
}

}  // namespace agmm
