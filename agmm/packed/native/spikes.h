// Spikes and signs between the floats of a training step and the bits of the kernels.
#pragma once

#include <functional>

#include "convolution.h"

namespace agmm {

// Runs work(index) for all indices on threads that the process keeps. A second caller at the same time works alone.
void share(int threads, int count, const std::function<void(int)>& work);

// Spikes [count, H, W, C], 0 and 1 in floats, as bits with their border. False for any other value.
bool pack_spikes(const Kernels& kernels, int threads, const float* x, const BitMaps& maps, int channels,
                 uint64_t* bits);

// And back, to floats or to bfloat16.
void unpack_spikes(const Kernels& kernels, int threads, const uint64_t* bits, const BitMaps& maps, int channels,
                   float* x);
void unpack_spikes(const Kernels& kernels, int threads, const uint64_t* bits, const BitMaps& maps, int channels,
                   uint16_t* x);

// The signs of latent weights [out, 3, 3, in], +1 for zeros, as a layer of the path.
Signs load_latent(const Kernels& kernels, int threads, const float* weights, int out_channels, int in_channels,
                       int stride);

// The sums [count, H', W', out].
void convolve_spikes(const Kernels& kernels, int threads, const Signs& layer, const uint64_t* bits,
                     const BitMaps& maps, int16_t* out);

}  // namespace agmm
