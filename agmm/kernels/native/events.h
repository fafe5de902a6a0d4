// The gradient of a binary convolution's weights as a sum over spikes.
#pragma once

#include "kernels.h"

namespace agmm::fused {

// Of a word of input channels and of output channels [begin, end).
void weight_gradient(const Kernels& kernels, const AgmmEvents& job, size_t word, size_t begin, size_t end);

}  // namespace agmm::fused
