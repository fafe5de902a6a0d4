// The C ABI that agmm/packed/native.py calls. Everything is checked there; pointers are read during the call only.
// Functions that return int give 0, 1 for no memory, or 2 for a value that is too large.
#pragma once

#include <cstdint>

extern "C" {

struct AgmmNeuron {
    float threshold, leak, start;
    int32_t hard;
};

struct AgmmStem {
    int32_t in_channels, channels, kernel, stride, max_pool;
    const float* weight;   // [channels, in_channels, kernel, kernel]
    const double* affine;  // [2, channels]
};

struct AgmmBlock {
    int32_t in_channels, out_channels, stride, pool;
    int32_t gate;      // 0 none, 1 sample, 2 channel
    int32_t shortcut;  // 0 none, 1 identity, 2 projection
    int32_t affine_steps;
    AgmmNeuron neuron;
    const uint8_t* signs;           // [out_channels, 3, 3, ceil(in_channels / 8)]
    const double* affine;           // [2, affine_steps, out_channels], of the integer results
    const double* alpha;            // [T], for a gate
    const float* shortcut_weight;   // [out_channels, in_channels], for a projection
    const double* shortcut_affine;  // [2, affine_steps, out_channels]
};

struct AgmmTail {
    int32_t spikes, pool, grid, classes;
    AgmmNeuron neuron;
    float amplitude;
    const float* weight;  // [classes, features]
    const float* bias;
};

struct AgmmNetwork {
    int32_t steps, frames, blocks, threads;
    const char* path;
    AgmmStem stem;
    const AgmmBlock* block;
    AgmmTail tail;
};

// Changes with anything in this file; `ABI` in abi.py is the same.
int32_t agmm_abi();
// Names of the paths that this machine runs, best first, separated by spaces.
const char* agmm_paths();
// Multiply-adds of floats in registers, to measure the processor's peak: how many were done. sum: below 1.
int64_t agmm_multiply_adds(const char* path, int64_t rounds, float* sum);
int agmm_create(const AgmmNetwork* description, void** network);
void agmm_free(void* network);
// images: [batch, (T,) height, width, channels]; logits: [batch, classes]; counts: [blocks, 3], added to, or null:
// neurons, spikes, arrivals of spikes at a position of the output.
int agmm_run(void* network, const float* images, int64_t batch, int32_t height, int32_t width, float* logits,
             int64_t* counts);
// Bytes beside the weights, of all threads, as the runs so far needed them.
int64_t agmm_memory(const void* network);
// One binary convolution, of values 0 and 1 (`planes` 1) or 0..4 (3): [count, height, width, in] to [count, height',
// width', out].
int agmm_layer_create(const char* path, int32_t threads, const uint8_t* signs, int32_t out_channels,
                      int32_t in_channels, int32_t stride, int32_t planes, void** layer);
void agmm_layer_free(void* layer);
// Spikes [count, height, width, channels], 0 and 1 in floats, as bits with a border, and back, to bfloat16 where `half`:
// [count, height + 2, width + 2, ceil(channels / 64)].
int agmm_pack_spikes(const char* path, int32_t threads, const float* x, int64_t count, int32_t height, int32_t width,
                     int32_t channels, uint64_t* bits);
void agmm_unpack_spikes(const char* path, int32_t threads, const uint64_t* bits, int64_t count, int32_t height,
                        int32_t width, int32_t channels, int32_t half, void* x);
// Such bits by the signs of weights [out_channels, 3, 3, channels]: sums [count, height', width', out_channels].
int agmm_convolve_spikes(const char* path, int32_t threads, const uint64_t* bits, int64_t count, int32_t height,
                         int32_t width, int32_t channels, const float* weights, int32_t out_channels, int32_t stride,
                         int16_t* out);
int agmm_layer_run(void* layer, const uint8_t* x, int64_t count, int32_t height, int32_t width, int16_t* out);
}
