#include "measure.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace {

// Atomic because the measured call runs on another thread, not because there are several at a time.
std::atomic<std::size_t> bytes_now = 0;
std::atomic<std::size_t> most_bytes = 0;
std::atomic<std::size_t> allocations = 0;

// Before each block of memory, at least as many bytes as it is aligned to; the last of them hold its size.
constexpr std::size_t header_bytes = alignof(std::max_align_t);

constexpr std::size_t stack_bytes = 1 << 20;
constexpr unsigned char paint = 0xA5;
alignas(4096) unsigned char stack[stack_bytes];

void* run(void* call) {
    if (call != nullptr) (*static_cast<const std::function<void()>*>(call))();
    return nullptr;
}

// The bytes of the stack that a thread has written to; the stack grows from its end.
std::size_t painted_over(const std::function<void()>* call) {
    std::fill(std::begin(stack), std::end(stack), paint);
    pthread_attr_t attributes;
    pthread_t thread;
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstack(&attributes, stack, stack_bytes) != 0 ||
        pthread_create(&thread, &attributes, run, const_cast<std::function<void()>*>(call)) != 0)
        throw std::runtime_error("no thread can be started on a stack of this program");
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    const auto* first =
        std::find_if(std::begin(stack), std::end(stack), [](unsigned char byte) { return byte != paint; });
    return static_cast<std::size_t>(std::end(stack) - first);
}

}  // namespace

void* operator new(std::size_t bytes, std::align_val_t alignment) {
    const std::size_t header = std::max(header_bytes, static_cast<std::size_t>(alignment));
    auto* block =
        static_cast<unsigned char*>(std::aligned_alloc(header, (bytes + header) / header * header + header));
    if (block == nullptr) throw std::bad_alloc();
    unsigned char* memory = block + header;
    *reinterpret_cast<std::size_t*>(memory - header_bytes) = bytes;
    ++allocations;
    bytes_now += bytes;
    most_bytes = std::max(most_bytes.load(), bytes_now.load());
    return memory;
}

void operator delete(void* memory, std::align_val_t alignment) noexcept {
    if (memory == nullptr) return;
    auto* bytes = static_cast<unsigned char*>(memory);
    bytes_now -= *reinterpret_cast<std::size_t*>(bytes - header_bytes);
    std::free(bytes - std::max(header_bytes, static_cast<std::size_t>(alignment)));
}

void* operator new(std::size_t bytes) { return operator new(bytes, std::align_val_t{header_bytes}); }
void operator delete(void* memory) noexcept { operator delete(memory, std::align_val_t{header_bytes}); }
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
    operator delete(memory, alignment);
}

Usage measure(const std::function<void()>& call) {
    call();
    const std::size_t of_an_empty_thread = painted_over(nullptr);
    const std::size_t before = bytes_now;
    most_bytes = before;
    allocations = 0;
    const std::size_t of_the_call = painted_over(&call);
    return {.stack_bytes = of_the_call - of_an_empty_thread,
            .heap_bytes = most_bytes - before,
            .allocations = allocations};
}
