// Counts what a program allocates: a test that is built with counted_allocations.cpp has another operator new.
#pragma once

#include <atomic>
#include <cstddef>

namespace counted {

extern std::atomic<std::size_t> allocations;

}  // namespace counted
