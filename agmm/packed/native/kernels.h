// What every path (AVX-512, AVX2, portable) offers to the network. Plain pointers and sizes: checked by the callers.
//
// Axes: T time, H, W, C channels; "16" behind a count: padded to a multiple of 16 channels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agmm {

constexpr int kWide = 32;       // outputs that `Products` computes at once
constexpr int kMostWords = 57;  // 9 * 64 * 57 is the most that 16 bits of results hold
constexpr int kGroup = 16;      // channels that a block computes at once, and to which activations are padded

constexpr size_t round_up(size_t count, size_t to) { return (count + to - 1) / to * to; }
// Where part `part` of `parts` equal ones begins.
constexpr int split(int count, int part, int parts) { return (int)((int64_t)count * part / parts); }
constexpr int strided(int size, int stride) { return (size + stride - 1) / stride; }
constexpr size_t words_of(size_t channels) { return (channels + 63) / 64; }

// Binary dot products of many windows: out = 2 * popcount(s & b) - popcount(s), for all output channels.
// A window is 3 rows of `run` words (3 taps x words of a pixel), `pitch` words apart: no copy of it is made.
// Further bit planes, weighted 2 and 4, lie `plane` words behind.
struct Dots {
    const uint64_t* const* windows;
    const int32_t* spikes;  // weighted popcount of each window
    int count;
    size_t pitch;
    int run;
    const uint64_t* weights;  // as `pack_signs` of the same path writes them
    int out16;
    int16_t* out;  // [count, out16]
    int planes;
    size_t plane;
};

// Real products of many windows of `rows` x `run` floats: out = scale * sum + bias.
struct Products {
    const float* const* windows;
    int count;
    size_t pitch;
    int rows;
    int run;
    const float* weights;  // [ceil(out / 32), rows * run, 32]
    const float* scale;    // [round_up(out, 32)]
    const float* bias;
    int out16;
    float* out;  // [count, out16]
};

struct Neuron {
    float threshold;
    float leak;
    float start;   // membrane before the first step
    int32_t hard;  // reset to zero, else by subtraction of the threshold
};

// x[t] = scale[t] * n[t] + bias[t] + in[t], written to `out`; then the neuron over all T, spikes as bits.
// Null pointers leave a part out: n (no convolution), in (no shortcut), out (stream not needed), bits (no neuron).
struct Fire {
    const int16_t* n;    // [T, pixels, out16]
    const float* scale;  // [T, out16], `affine_step` apart (0: the same at all steps)
    const float* bias;
    size_t affine_step;
    const float* in;  // [T, pixels, out16], `in_step` apart (0: a static image's stem)
    size_t in_step;
    float* out;
    size_t step;  // pixels * out16
    uint64_t* bits;
    size_t bits_step;
    int steps;
    int out16;
    Neuron neuron;
};

// Where the bits of spikes lie: [planes, steps, height + 2, width + 2, words], with a border of zeros, so that the taps
// of a kernel's row are words side by side. Values 0..4 have three planes, weighted 1, 2 and 4.
struct BitMaps {
    int planes, steps, height, width, words;

    size_t row() const { return (size_t)(width + 2) * words; }
    size_t step() const { return (height + 2) * row(); }
    size_t plane() const { return steps * step(); }
    size_t size() const { return planes * plane(); }
    // Word of the pixel without the border.
    size_t at(int t, int y, int x) const { return t * step() + (y + 1) * row() + (size_t)(x + 1) * words; }
};

struct Kernels {
    const char* name;
    // Number of uint64 of a layer's packed signs.
    size_t (*sign_words)(int out_channels, int in_channels);
    // signs: [out, 3, 3, ceil(in / 8)], least significant bit first, padding bits zero.
    void (*pack_signs)(const uint8_t* signs, int out_channels, int in_channels, uint64_t* weights);
    void (*dots)(const Dots&);
    // Popcounts of the windows of one row of the output, and their sum. `top` is the first window; `once`: a value that
    // is not zero counts 1. room: maps.row() values.
    int64_t (*window_spikes)(const uint64_t* top, const BitMaps& maps, int stride, bool once, int32_t* room,
                             int32_t* out);
    // Values [pixels, channels] as bit planes, `plane` words apart. False for a value over 1, or 4 with three planes.
    bool (*pack_values)(const uint8_t* x, int pixels, int channels, int planes, size_t plane, uint64_t* bits);
    // Which of floats [pixels, channels] reach the threshold, as bits. False where any is neither 0 nor the threshold.
    bool (*pack_floats)(const float* x, int pixels, int channels, float threshold, uint64_t* bits);
    // Bits as 0 and 1, in floats and in bfloat16.
    void (*unpack_floats)(const uint64_t* bits, int pixels, int channels, float* x);
    void (*unpack_halves)(const uint64_t* bits, int pixels, int channels, uint16_t* x);
    int64_t (*count_bits)(const uint64_t* words, size_t count);
    void (*products)(const Products&);
    // `count` pixels from `first` on, whose spikes begin at word `bits_offset` of each step.
    void (*fire)(const Fire&, size_t first, size_t count, size_t bits_offset);
    // One row of a 3x3 max-pool of stride 2; rows: three pointers [width, channels], of which the outer ones may be
    // null.
    void (*max_pool_row)(const float* const* rows, int width, int channels, float* out);
    // One row of means over windows of `size` x `size`, from `rows` <= size rows [width, channels].
    void (*mean_row)(const float* x, int rows, int width, int channels, int size, float* out);
    // Adds to sums[out16] the columns of n[count, out16]; |n| <= bound.
    void (*column_sums)(const int16_t* n, size_t count, int out16, int bound, int64_t* sums);
    // Fused multiply-adds of floats in registers, `rounds` times as many as it returns; `sum` is what came out.
    int64_t (*multiply_adds)(int64_t rounds, float* sum);
};

// The path of that name, or the best of this machine for an empty name; null where it is unknown or unsupported.
const Kernels* find_kernels(const char* name);
// Names of the paths that this machine can run, best first, separated by spaces.
const char* kernel_names();

}  // namespace agmm
