// In a file of its own, because compilers that inline one of the operators and not the other report a mismatch.
#include "counted_allocations.hpp"

#include <cstdlib>
#include <new>

namespace counted {

std::atomic<std::size_t> allocations = 0;

namespace {

void* allocate(std::size_t bytes, std::size_t alignment = alignof(std::max_align_t)) {
    ++allocations;
    const std::size_t size = (bytes + alignment) / alignment * alignment;
    if (void* block = std::aligned_alloc(alignment, size)) return block;
    throw std::bad_alloc();
}

}  // namespace

}  // namespace counted

// new[] and the forms that do not throw call these.
void* operator new(std::size_t bytes) { return counted::allocate(bytes); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return counted::allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }
void operator delete(void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { std::free(block); }
