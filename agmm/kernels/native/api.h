// The C ABI that agmm/kernels/native.py calls. Everything is checked there; pointers are read during the call only.
//
// Axes: T time steps, B batch, C channels, P pixels. A tensor is [T, B, C, P], or [T, B, P, C] where channels come last.
// What a step of it is made of is dense; `*_step` is the distance of two steps in values, 0 where all are the same.
#pragma once

#include <cstdint>

extern "C" {

struct AgmmShape {
    int64_t steps, batch, channels, pixels;
    int32_t channels_last, threads;
};

struct AgmmNeuron {
    float leak, threshold, width;
    int32_t hard, detach;
};

// A convolution's output n [T, B, C, P], as floats or as 16-bit integers, in units of its channel, [C]: null where they
// are 1.
struct AgmmCounts {
    const float* n;
    const int16_t* sums;
    const float* unit;
};

// gate * (scale * n + shift).
struct AgmmTerm {
    AgmmCounts counts;
    const float *scale, *shift;  // [C]
    const float* gate;           // [T, B, C]
};

// A stream x = r + the terms, one after the other. r may be null.
struct AgmmStream {
    const float* r;
    int64_t r_step;
    const AgmmTerm* terms;
    int64_t number;
};

// x, and spikes = neuron(x); either may be null.
struct AgmmForward {
    AgmmStream stream;
    float *x, *spikes;
};

// g = dL/dx, of the stream's own gradient (may be null) and the spikes', through time; without that one there is no
// neuron, and x is not looked at. With counts also sums[0] = sum of g over P, and sums[1] = sum of g * (n - centre).
struct AgmmBackward {
    AgmmStream stream;
    const float *grad_x, *grad_spikes;
    AgmmCounts counts;
    const float* centre;  // [C]
    float* g;
    double* sums;  // [2, T, B, C], or null
};

// dn = times * (by_g * g + by_n * (n - centre) + rest), as floats, which may be g, or as bfloat16.
struct AgmmAffine {
    const float* g;
    AgmmCounts counts;
    const float *centre, *times;      // [C], [C] or null for 1
    const float *by_g, *by_n, *rest;  // [T, B, C], [C], [T, B, C]
    float* dn;
    uint16_t* half;
};

// The gradient of a 3x3 convolution's weights, of padding 1 and stride 1: of spikes as bits, with a border of zeros,
// [N, H + 2, W + 2, words of 64 channels], and of the output's gradients [N, H, W, O], as floats or as bfloat16, the
// gradient of weights [O, 3, 3, I].
struct AgmmEvents {
    int64_t images, height, width, ins, outs;
    int32_t threads;
    const uint64_t* bits;
    const float* grad;
    const uint16_t* half;
    float* dweights;
};

// Changes with anything in this file; `ABI` in native.py is the same.
int32_t agmm_fused_abi();
// Names of the paths that this machine runs, best first, separated by spaces.
const char* agmm_fused_paths();
// sums[0] = sum of n over P, sums[1] = sum of its squares: [2, T, B, C].
void agmm_fused_moments(const char* path, const AgmmShape* shape, const AgmmCounts* counts, double* sums);
void agmm_fused_forward(const char* path, const AgmmShape* shape, const AgmmNeuron* neuron, const AgmmForward* job);
void agmm_fused_backward(const char* path, const AgmmShape* shape, const AgmmNeuron* neuron, const AgmmBackward* job);
void agmm_fused_affine(const char* path, const AgmmShape* shape, const AgmmAffine* job);
void agmm_fused_weight_gradient(const char* path, const AgmmEvents* job);
}
