// Arrays that begin at a cache line.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace agmm {

template <typename T>
struct OnCacheLine {
    using value_type = T;
    OnCacheLine() = default;
    template <typename U>
    OnCacheLine(const OnCacheLine<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t(64)); }
    bool operator==(const OnCacheLine&) const { return true; }
    bool operator!=(const OnCacheLine&) const { return false; }
};

template <typename T>
using Array = std::vector<T, OnCacheLine<T>>;

// Room that grows and is kept; what it holds is lost when it does. Returns its beginning.
template <typename T>
T* reserve(Array<T>& room, size_t count) {
    if (room.size() < count) {
        Array<T>().swap(room);
        room.resize(count);
    }
    return room.data();
}

}  // namespace agmm
