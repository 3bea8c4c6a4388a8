// How much stack and heap a call takes.
#pragma once

#include <cstddef>
#include <functional>

struct Usage {
    std::size_t stack_bytes = 0;
    std::size_t heap_bytes = 0;  // the most at one time
    std::size_t allocations = 0;
};

// Runs `call` twice, the first time for what only a first call does, and measures the second one.
Usage measure(const std::function<void()>& call);
