// Vectors of types that are aligned beyond what operator new gives by itself. std::allocator takes care of that, but
// not the one of libstdc++ 12 in C++23 as clang 14 compiles it: there kernels would load tables that are not aligned.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <vector>

namespace orbitsplit {

template <class T>
struct AlignedAllocator {
    using value_type = T;

    AlignedAllocator() = default;
    template <class Other>
    AlignedAllocator(const AlignedAllocator<Other>&) noexcept {}

    T* allocate(std::size_t count) {
        if (count > std::numeric_limits<std::size_t>::max() / sizeof(T)) throw std::bad_array_new_length();
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{alignof(T)}));
    }
    void deallocate(T* block, std::size_t) noexcept {
        ::operator delete(block, std::align_val_t{alignof(T)});
    }

    friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace orbitsplit
