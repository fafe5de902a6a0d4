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

// x = gate * (scale * n + shift) + r, spikes = neuron(x). Without n, x is r; without r, it is not added; x may be null.
// Here and below n is given in units of its channel, [C]: null where they are 1.
struct AgmmForward {
    const float *n, *unit, *scale, *shift;  // [T, B, C, P], [C], [C], [C]
    const float* gate;               // [T, B, C]
    const float* r;
    int64_t r_step;
    float *x, *spikes;
};

// g = dL/dx, of the stream's own gradient (may be null) and the spikes' (may be null), through time. With n also
// sums[0] = sum of g over P, and sums[1] = sum of g * (n - centre).
struct AgmmBackward {
    const float* x;
    int64_t x_step;
    const float *grad_x, *grad_spikes;
    const float *n, *unit, *centre;  // may be null; [C], [C]
    float* g;
    double* sums;  // [2, T, B, C]
};

// dn = unit * (by_g * g + by_n * (n - centre) + rest). dn may be g.
struct AgmmAffine {
    const float *g, *n, *unit, *centre;
    const float *by_g, *by_n, *rest;  // [T, B, C], [C], [T, B, C]
    float* dn;
};

// Changes with anything in this file; `ABI` in native.py is the same.
int32_t agmm_fused_abi();
// Names of the paths that this machine runs, best first, separated by spaces.
const char* agmm_fused_paths();
// sums[0] = sum of n over P, sums[1] = sum of its squares: [2, T, B, C].
void agmm_fused_moments(const char* path, const AgmmShape* shape, const float* n, const float* unit, double* sums);
void agmm_fused_forward(const char* path, const AgmmShape* shape, const AgmmNeuron* neuron, const AgmmForward* job);
void agmm_fused_backward(const char* path, const AgmmShape* shape, const AgmmNeuron* neuron, const AgmmBackward* job);
void agmm_fused_affine(const char* path, const AgmmShape* shape, const AgmmAffine* job);
}
