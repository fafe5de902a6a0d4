// One set of sources, compiled once a path; the processor decides at run time.
#include <cstring>
#include <string>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,fma")
#endif
namespace agmm::fused::avx512 {
#include "avx512.h"
#include "lines.h"
#include "passes.h"
#include "taps.h"
}  // namespace agmm::fused::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace agmm::fused::avx2 {
#include "avx2.h"
#include "lines.h"
#include "passes.h"
#include "taps.h"
}  // namespace agmm::fused::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

namespace agmm::fused::portable {
#include "portable.h"
#include "lines.h"
#include "passes.h"
#include "taps.h"
}  // namespace agmm::fused::portable

namespace agmm::fused {
namespace {

#define AGMM_PATH(path) {#path, path::moments, path::forward, path::backward, path::affine, path::add_taps, path::kTile}

const Kernels kPaths[] = {
#if defined(__x86_64__)
    AGMM_PATH(avx512),
    AGMM_PATH(avx2),
#endif
    AGMM_PATH(portable),
};

bool supported(const char* name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!std::strcmp(name, "avx512")) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    }
    if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return !std::strcmp(name, "portable");
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    for (const Kernels& path : kPaths) {
        if (supported(path.name) && !std::strcmp(name, path.name)) return &path;
    }
    return nullptr;
}

const char* kernel_names() {
    static const std::string names = [] {
        std::string all;
        for (const Kernels& path : kPaths) {
            if (supported(path.name)) all += (all.empty() ? "" : " ") + std::string(path.name);
        }
        return all;
    }();
    return names.c_str();
}

}  // namespace agmm::fused
