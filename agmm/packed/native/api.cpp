#include "api.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "inference.h"
#include "layer.h"
#include "spikes.h"

namespace agmm {
namespace {

constexpr int kNoMemory = 1, kTooLarge = 2;

struct Network {
    const Kernels& kernels;
    Layers layers;
    Team team;
    Plan plan;
    std::vector<Room> rooms;  // one for each image at a time

    Network(const Kernels& path, const AgmmNetwork& network)
        : kernels(path), layers(load(path, network)), team(network.threads) {}

    void prepare(Shape image, bool by_image) {
        plan = Plan(layers, image);
        rooms.resize(by_image ? team.size() : 1);
        for (Room& room : rooms) room.prepare(layers, plan, by_image ? 1 : team.size());
    }

    void run(const float* images, int batch, Shape image, float* logits, int64_t* counts) {
        const size_t size = image.pixels() * layers.stem.in_channels * (layers.frames ? layers.steps : 1);
        const size_t classes = layers.tail.head.outputs, entries = 3 * layers.blocks.size();
        const bool by_image = team.size() > 1 && batch >= team.size();
        prepare(image, by_image);
        if (!by_image) {
            for (int i = 0; i < batch; ++i) {
                Inference(kernels, layers, plan, rooms[0], &team).run(images + i * size, logits + i * classes, counts);
            }
            return;
        }
        std::vector<int64_t> own(counts ? team.size() * entries : 0);
        team.each(batch, [&](int i, int worker) {
            int64_t* its = counts ? own.data() + worker * entries : nullptr;
            Inference(kernels, layers, plan, rooms[worker], nullptr).run(images + i * size, logits + i * classes, its);
        });
        for (size_t i = 0; i < own.size(); ++i) counts[i % entries] += own[i];
    }
};

BitMaps maps_of(int64_t count, int32_t height, int32_t width, int32_t channels) {
    return {1, (int)count, height, width, (int)words_of(channels)};
}

template <typename Body>
int guarded(Body body) {
    try {
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    } catch (const std::length_error&) {  // a vector beyond all memory
        return kNoMemory;
    }
}

}  // namespace
}  // namespace agmm

using namespace agmm;

extern "C" {

int32_t agmm_abi() { return 3; }

const char* agmm_paths() { return kernel_names(); }

int64_t agmm_multiply_adds(const char* path, int64_t rounds, float* sum) {
    return rounds * find_kernels(path)->multiply_adds(rounds, sum);
}

int agmm_create(const AgmmNetwork* description, void** network) {
    return guarded([&] { *network = new Network(*find_kernels(description->path), *description); });
}

void agmm_free(void* network) { delete static_cast<Network*>(network); }

int agmm_run(void* network, const float* images, int64_t batch, int32_t height, int32_t width, float* logits,
             int64_t* counts) {
    Network& its = *static_cast<Network*>(network);
    return guarded([&] { its.run(images, (int)batch, {height, width}, logits, counts); });
}

int64_t agmm_memory(const void* network) {
    int64_t sum = 0;
    for (const Room& room : static_cast<const Network*>(network)->rooms) sum += room.bytes();
    return sum;
}

int agmm_pack_spikes(const char* path, int32_t threads, const float* x, int64_t count, int32_t height, int32_t width,
                     int32_t channels, uint64_t* bits) {
    const BitMaps maps = maps_of(count, height, width, channels);
    return pack_spikes(*find_kernels(path), threads, x, maps, channels, bits) ? 0 : kTooLarge;
}

void agmm_unpack_spikes(const char* path, int32_t threads, const uint64_t* bits, int64_t count, int32_t height,
                        int32_t width, int32_t channels, int32_t half, void* x) {
    const Kernels& kernels = *find_kernels(path);
    const BitMaps maps = maps_of(count, height, width, channels);
    if (half) return unpack_spikes(kernels, threads, bits, maps, channels, static_cast<uint16_t*>(x));
    unpack_spikes(kernels, threads, bits, maps, channels, static_cast<float*>(x));
}

int agmm_convolve_spikes(const char* path, int32_t threads, const uint64_t* bits, int64_t count, int32_t height,
                         int32_t width, int32_t channels, const float* weights, int32_t out_channels, int32_t stride,
                         int16_t* out) {
    return guarded([&] {
        const Kernels& kernels = *find_kernels(path);
        const Signs layer = load_latent(kernels, threads, weights, out_channels, channels, stride);
        convolve_spikes(kernels, threads, layer, bits, maps_of(count, height, width, channels), out);
    });
}

int agmm_layer_create(const char* path, int32_t threads, const uint8_t* signs, int32_t out_channels,
                      int32_t in_channels, int32_t stride, int32_t planes, void** layer) {
    return guarded([&] {
        const Kernels& kernels = *find_kernels(path);
        *layer = new Layer(kernels, load_signs(kernels, signs, out_channels, in_channels, stride), planes, threads);
    });
}

void agmm_layer_free(void* layer) { delete static_cast<Layer*>(layer); }

int agmm_layer_run(void* layer, const uint8_t* x, int64_t count, int32_t height, int32_t width, int16_t* out) {
    bool fits = true;
    const int status = guarded([&] { fits = static_cast<Layer*>(layer)->run(x, (int)count, height, width, out); });
    return fits ? status : kTooLarge;
}
}
