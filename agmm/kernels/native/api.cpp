#include "api.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "../../packed/native/team.h"
#include "events.h"

namespace agmm::fused {
namespace {

constexpr size_t kPartValues = 1 << 15;      // of all steps, about: less is not worth a thread's turn
constexpr size_t kStreamedValues = 1 << 21;  // of a tensor: 8 MB, about what the caches of two passes would keep
constexpr size_t kLine = 64;                 // bytes
constexpr size_t kNarrow = 64;               // channels
constexpr size_t kShare = 32;                // output channels of a thread, at least: a tile of every path
constexpr size_t kTasks = 32;                // of a sum over spikes, about, that threads can share

size_t up(size_t count, size_t of) { return (count + of - 1) / of; }

Shape shape_of(const AgmmShape& shape) {
    return {(size_t)shape.steps,  (size_t)shape.batch,      (size_t)shape.channels,
            (size_t)shape.pixels, shape.channels_last != 0, false};
}

// Whether results of that size go past the caches: only whole lines do.
bool streams(const Shape& shape, std::initializer_list<const float*> results) {
    const size_t length = shape.last ? shape.channels : shape.pixels;
    bool aligned = length * sizeof(float) % kLine == 0;
    for (const float* result : results) aligned &= (uintptr_t)result % kLine == 0;
    return aligned && shape.steps * shape.step() >= kStreamedValues;
}

// Where channels come last, few of them make short lines: only where there are fewer samples than threads.
size_t channels_of_part(const Shape& shape, size_t threads) {
    if (shape.last) return shape.batch < threads ? kNarrow : kWide;
    return std::clamp<size_t>(kPartValues / shape.steps / shape.pixels, 1, shape.channels);
}

std::mutex turn;
std::unique_ptr<Team>& team() {
    static auto* kept = new std::unique_ptr<Team>;  // never destroyed: a process may end while its threads sleep
    return *kept;
}

// All tasks, shared by the threads. Two callers at once do not share them: the second works alone.
void each_task(size_t count, int threads, const std::function<void(size_t)>& work) {
    std::unique_lock<std::mutex> lock(turn, std::defer_lock);
    if (threads > 1 && count > 1 && lock.try_lock()) {
        if (!team() || team()->size() != threads) team() = std::make_unique<Team>(threads);
        return team()->each((int)count, [&](int index, int) { work(index); });
    }
    for (size_t index = 0; index < count; ++index) work(index);
}

// Parts share no sums, so the number of threads does not change results.
void each_part(const Shape& shape, int threads, const std::function<void(Part)>& work) {
    const size_t wide = channels_of_part(shape, threads), columns = (shape.channels + wide - 1) / wide;
    each_task(shape.batch * columns, threads, [&](size_t index) {
        const size_t begin = index % columns * wide;
        work({index / columns, begin, std::min(begin + wide, shape.channels)});
    });
}

}  // namespace
}  // namespace agmm::fused

using namespace agmm::fused;

extern "C" {

int32_t agmm_fused_abi() { return 4; }

const char* agmm_fused_paths() { return kernel_names(); }

void agmm_fused_moments(const char* path, const AgmmShape* sizes, const AgmmCounts* counts, double* sums) {
    const Shape shape = shape_of(*sizes);
    std::fill_n(sums, 2 * shape.steps * shape.coefficients(), 0.0);
    const Kernels& kernels = *find_kernels(path);
    each_part(shape, sizes->threads, [&](Part part) { kernels.moments(shape, *counts, sums, part); });
}

void agmm_fused_forward(const char* path, const AgmmShape* sizes, const AgmmNeuron* neuron, const AgmmForward* job) {
    Shape shape = shape_of(*sizes);
    shape.stream = streams(shape, {job->x, job->spikes});
    const Kernels& kernels = *find_kernels(path);
    each_part(shape, sizes->threads, [&](Part part) { kernels.forward(shape, *neuron, *job, part); });
}

void agmm_fused_backward(const char* path, const AgmmShape* sizes, const AgmmNeuron* neuron, const AgmmBackward* job) {
    Shape shape = shape_of(*sizes);
    shape.stream = streams(shape, {job->g});
    if (job->sums) std::fill_n(job->sums, 2 * shape.steps * shape.coefficients(), 0.0);
    const Kernels& kernels = *find_kernels(path);
    each_part(shape, sizes->threads, [&](Part part) { kernels.backward(shape, *neuron, *job, part); });
}

void agmm_fused_affine(const char* path, const AgmmShape* sizes, const AgmmAffine* job) {
    Shape shape = shape_of(*sizes);
    shape.stream = job->dn && streams(shape, {job->dn});
    const Kernels& kernels = *find_kernels(path);
    each_part(shape, sizes->threads, [&](Part part) { kernels.affine(shape, *job, part); });
}

void agmm_fused_weight_gradient(const char* path, const AgmmEvents* job) {
    const Extent extent(*job);
    const size_t outs = job->outs, all = outs * kTaps * job->ins, most = up(outs, kShare);
    // a function of the sizes alone: parts are summed apart, and then added up
    const size_t parts = std::min(up(kTasks, extent.words * most), extent.bands);
    // while a word's spikes are looked for once a share of the output channels
    const size_t shares = std::min(up(job->threads, extent.words * parts), most), share = up(most, shares) * kShare;
    std::vector<float> others((parts - 1) * all);
    const Kernels& kernels = *find_kernels(path);
    each_task(extent.words * shares * parts, job->threads, [&](size_t index) {
        const size_t word = index % extent.words, begin = index / extent.words % shares * share;
        const size_t part = index / extent.words / shares;
        if (begin >= outs) return;
        const Range bands = {part * extent.bands / parts, (part + 1) * extent.bands / parts};
        float* to = part ? others.data() + (part - 1) * all : job->dweights;
        weight_gradient(kernels, *job, word, {begin, std::min(begin + share, outs)}, bands, to);
    });
    for (size_t part = 1; part < parts; ++part) {
        for (size_t i = 0; i < all; ++i) job->dweights[i] += others[(part - 1) * all + i];
    }
}
}
