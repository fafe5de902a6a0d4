// One set of sources, compiled once a path; the processor decides at run time.
#include <cstring>
#include <string>
#include <utility>

#include "kernels.h"
#include "words.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "spikes are packed for processors that store the little end first"
#endif

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,fma,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,fma,popcnt")
#endif
namespace agmm::avx512 {
#include "unroll.h"
#include "avx512.h"
#include "common.h"
}  // namespace agmm::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt")
#endif
namespace agmm::avx2 {
#include "unroll.h"
#include "avx2.h"
#include "common.h"
}  // namespace agmm::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

namespace agmm::portable {
#include "unroll.h"
#include "portable.h"
#include "common.h"
}  // namespace agmm::portable

namespace agmm {
namespace {

#define AGMM_PATH(path)   \
    {#path,               \
     path::sign_words,    \
     path::pack_signs,    \
     path::dots,          \
     path::window_spikes, \
     path::pack_values,   \
     path::pack_floats,   \
     path::unpack_floats, \
     path::unpack_halves, \
     path::count_bits,    \
     path::products,      \
     path::fire,          \
     path::max_pool_row,  \
     path::mean_row,      \
     path::column_sums,   \
     path::multiply_adds}

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
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vpopcntdq");
    }
    if (!std::strcmp(name, "avx2")) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
    }
#endif
    return !std::strcmp(name, "portable");
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    for (const Kernels& path : kPaths) {
        if (supported(path.name) && (!*name || !std::strcmp(name, path.name))) return &path;
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

}  // namespace agmm
